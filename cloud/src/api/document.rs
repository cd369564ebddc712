//! The `OpenAPI` 3.1 document, generated from the handlers and the table of who may use them.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    OpenApi as _, PartialSchema, ToSchema,
    openapi::{
        Components, ContentBuilder, InfoBuilder, OpenApi, PathItem, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    access::{Access, access},
    enroll,
    problem::{FieldError, Problem},
    routes,
};
use crate::live::hub::Message;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
});

/// The document, as JSON.
#[must_use]
pub fn openapi() -> String {
    DOCUMENT.clone()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "server", responses((status = 200, description = "OpenAPI 3.1")), security(()))]
pub async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

fn document() -> OpenApi {
    let mut document = routes().into_openapi();
    document.merge(enroll::Document::openapi());
    document.info = InfoBuilder::new()
        .title("Gemba")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The cloud of Gemba: machines, their trends, anomalies and alarms. Times are UTC in RFC 3339; errors are \
             `application/problem+json` with a stable `code`; lists go on with `?cursor=`.",
        ))
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    components.schemas.insert("Problem".into(), Problem::schema());
    components.schemas.insert("FieldError".into(), FieldError::schema());
    components.schemas.insert("LiveMessage".into(), Message::schema());
    let mut schemas = Vec::new();
    Message::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    document.security = Some(vec![SecurityRequirement::new("bearer", [] as [&str; 0])]);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            complete(operation, access(&method, path));
        }
    }
    document
}

/// Says who may use an operation, and what its errors look like.
fn complete(operation: &mut Operation, access: Option<Access>) {
    let who = match access {
        Some(Access::Open) => None,
        Some(Access::SignedIn | Access::User) => Some("For every user.".to_owned()),
        None => Some("For nobody.".to_owned()),
        Some(Access::Role(role)) => Some(format!("For {role}s and above; shows the sites where the caller is that.")),
        Some(Access::At(role, object)) => Some(format!("For {role}s and above at the {}'s site.", object.as_str())),
        Some(Access::Organisation(role)) => Some(format!("For {role}s of the whole organisation.")),
    };
    if let Some(who) = who {
        let text = operation.description.take().map_or_else(|| who.clone(), |text| format!("{text}\n\n{who}"));
        operation.description = Some(text);
    }
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description("What went wrong").content("application/problem+json", content);
    operation.responses.responses.insert("default".into(), RefOr::T(problem.build()));
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (axum::http::Method, &mut Operation)> {
    use axum::http::Method;
    [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api::access::ROUTES;

    fn parsed() -> Value {
        serde_json::from_str(&openapi()).unwrap()
    }

    #[test]
    fn the_document_has_every_route_of_the_table_and_no_other() {
        let document = parsed();
        let described: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let table: BTreeSet<String> = ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
        assert_eq!(table.len(), ROUTES.len(), "each stands once");
        assert_eq!(described, table);
    }

    #[test]
    fn the_document_is_openapi_and_every_reference_leads_somewhere() {
        let document = parsed();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["title"], "Gemba");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["responses"]["default"].is_object(), "{method} {path}");
                let named: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .map(|parameter| parameter["name"].as_str().unwrap())
                    .collect();
                let held: BTreeSet<&str> =
                    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
                assert_eq!(named, held, "{method} {path}");
                let open = ROUTES.iter().any(|(known, at, access)| {
                    known.as_str().eq_ignore_ascii_case(method) && at == path && *access == Access::Open
                });
                assert_eq!(operation["security"].is_array(), open, "{method} {path}");
            }
        }
    }

    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if key == "$ref" => into.push(text.clone()),
                        other => collect(other, into),
                    }
                }
            }
            Value::Array(list) => {
                for value in list {
                    collect(value, into);
                }
            }
            _ => {}
        }
    }
}
