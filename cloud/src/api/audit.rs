//! What was changed by whom: a list, and an export of all of it as a stream.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Items, Params},
    problem::ApiError,
};
use crate::{
    export::no_formula,
    store::{
        audit::{self, Entry, Filter},
        scoped,
    },
};

/// Rows of an export read at a time.
const ROWS: i64 = 1_000;
const WORD_CHARS_MAX: usize = 200;
const COLUMNS: [&str; 13] = [
    "id",
    "at",
    "site",
    "user",
    "actor",
    "api_key",
    "action",
    "object",
    "object_id",
    "before",
    "after",
    "address",
    "request",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Ndjson,
}

/// Changes that people made, the newest first.
#[utoipa::path(get, path = "/audit", tag = "audit",
    params(("user" = Option<Uuid>, Query), ("action" = Option<String>, Query, description = "Like `alarm.acknowledge`."),
        ("object" = Option<String>, Query, description = "Like `alarm`."), ("object_id" = Option<String>, Query),
        ("site" = Option<Uuid>, Query), ("from" = Option<jiff::Timestamp>, Query),
        ("to" = Option<jiff::Timestamp>, Query, description = "Exclusive."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Entry>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Entry>>, ApiError> {
    let filter = filter(&mut params);
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = audit::list(&transaction, &filter, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// All changes that people made, the newest first, as a file.
///
/// A line for each: JSON objects as in the list, or CSV with the same columns.
#[utoipa::path(get, path = "/audit/export", tag = "audit",
    params(("format" = Option<String>, Query, description = "`ndjson` (the default) or `csv`."),
        ("user" = Option<Uuid>, Query), ("action" = Option<String>, Query), ("object" = Option<String>, Query),
        ("object_id" = Option<String>, Query), ("site" = Option<Uuid>, Query),
        ("from" = Option<jiff::Timestamp>, Query), ("to" = Option<jiff::Timestamp>, Query, description = "Exclusive.")),
    responses((status = 200, description = "Lines of JSON, or CSV with a header.",
        content((String = "application/x-ndjson"), (String = "text/csv")))))]
pub async fn export(State(state): State<ApiState>, caller: Caller, mut params: Params) -> Result<Response, ApiError> {
    let filter = filter(&mut params);
    let format = params.one("format", "ndjson or csv", |text| match text {
        "csv" => Some(Format::Csv),
        "ndjson" => Some(Format::Ndjson),
        _ => None,
    });
    params.finish()?;
    let format = format.unwrap_or(Format::Ndjson);
    // What went wrong later ends the connection: half a file must not look like a whole one.
    let first = (None, if format == Format::Csv { header_line()? } else { Vec::new() });
    let lines = stream::try_unfold(Some(first), move |from| {
        let (state, caller, filter) = (state.clone(), caller.clone(), filter.clone());
        async move {
            let Some((after, mut text)) = from else { return Ok::<_, std::io::Error>(None) };
            let rows = page(&state, &caller, &filter, after).await.map_err(|_| std::io::Error::other("export"))?;
            let next =
                (rows.len() as i64 == ROWS).then(|| rows.last().map(|last| (Some(last.id), Vec::new()))).flatten();
            for row in &rows {
                write(&mut text, format, row)?;
            }
            Ok(Some((Bytes::from(text), next)))
        }
    });
    let (kind, name) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "attachment; filename=\"audit.csv\""),
        Format::Ndjson => ("application/x-ndjson", "attachment; filename=\"audit.ndjson\""),
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], Body::from_stream(lines)).into_response())
}

fn filter(params: &mut Params) -> Filter {
    let word = |text: &str| (text.chars().count() <= WORD_CHARS_MAX && !text.contains('\0')).then(|| text.to_owned());
    Filter {
        user: params.id("user"),
        action: params.one("action", "a word like alarm.acknowledge", word),
        object: params.one("object", "a word like alarm", word),
        object_id: params.one("object_id", "an id", word),
        site: params.id("site"),
        from: params.time("from"),
        to: params.time("to"),
    }
}

async fn page(state: &ApiState, caller: &Caller, filter: &Filter, after: Option<Uuid>) -> Result<Vec<Entry>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(audit::list(&transaction, filter, after, ROWS).await?)
}

fn header_line() -> Result<Vec<u8>, ApiError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|_| ApiError::internal())?;
    writer.into_inner().map_err(|_| ApiError::internal())
}

fn write(text: &mut Vec<u8>, format: Format, row: &Entry) -> Result<(), std::io::Error> {
    if format == Format::Ndjson {
        serde_json::to_writer(&mut *text, row)?;
        text.push(b'\n');
        return Ok(());
    }
    let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut writer = csv::Writer::from_writer(text);
    writer.write_record([
        row.id.to_string(),
        row.at.to_string(),
        id(row.site),
        id(row.user),
        no_formula(&row.actor),
        id(row.api_key),
        row.action.clone(),
        row.object.clone(),
        no_formula(&row.object_id),
        json(&row.before),
        json(&row.after),
        row.address.map(|address| address.to_string()).unwrap_or_default(),
        id(row.request),
    ])?;
    writer.flush()
}
