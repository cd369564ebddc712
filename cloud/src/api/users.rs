//! Users, as the admins of an organisation manage them.
//!
//! Nobody is deleted, since what they did stays: they are disabled. Who is added gets a link with which they choose a password;
//! the admin hands it over.

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, OTHER_ORDER, Params, Path, present, written},
    idempotency::Secret,
    problem::ApiError,
};
use crate::{
    store::{
        scoped,
        users_admin::{self, After, Changed, Member, NewMember, Order, Profile},
    },
    users::{
        check_name,
        scope::Grant,
        secrets::{self, LINK},
    },
};

const DISPLAY_NAME_CHARS_MAX: usize = 100;
/// RFC 5321.
const EMAIL_CHARS_MAX: usize = 254;
/// Grants of one user.
const GRANTS_MAX: usize = 500;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// For the login; unique on the server.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    #[serde(default)]
    #[schema(max_length = 100)]
    display_name: Option<String>,
    #[serde(default)]
    #[schema(max_length = 254)]
    email: Option<String>,
    #[schema(max_items = 500)]
    grants: Vec<Grant>,
}

/// What is left out stays as it is.
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 100)]
    display_name: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 254)]
    email: Option<Option<String>>,
    /// Ends all sessions and keys of the user.
    #[serde(default)]
    disabled: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// In the place of all that there were.
    #[schema(max_items = 500)]
    grants: Vec<Grant>,
}

#[allow(missing_debug_implementations, reason = "it holds a secret")]
#[derive(Serialize, ToSchema)]
pub struct PasswordLink {
    /// Where the user chooses a password, once. It is not shown again.
    link: String,
    expires_at: Timestamp,
}

#[allow(missing_debug_implementations, reason = "it holds a secret")]
#[derive(Serialize, ToSchema)]
pub struct Invited {
    user: Member,
    invitation: PasswordLink,
}

/// Users, by name, or as `sort` says.
#[utoipa::path(get, path = "/users", tag = "users",
    params(("disabled" = Option<bool>, Query),
        ("sort" = Option<String>, Query, description = "`name` (the default) or `created_at` (the newest first)."), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Member>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Member>>, ApiError> {
    let disabled = params.flag("disabled");
    let order = params
        .one("sort", "name or created_at", |text| match text {
            "name" => Some(Order::Name),
            "created_at" => Some(Order::CreatedAt),
            _ => None,
        })
        .unwrap_or_default();
    let page = params.page::<After>();
    if page.after.as_ref().is_some_and(|after| after.order() != order) {
        params.refuse("cursor", OTHER_ORDER);
    }
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = users_admin::list(&transaction, disabled, order, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| After::of(order, last))))
}

/// A user.
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = Uuid, Path)),
    responses((status = 200, body = Member), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Member>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    users_admin::one(&transaction, id, false).await?.map(tagged).ok_or_else(missing)
}

/// Add a user; the answer has the link with which they choose a password.
#[utoipa::path(post, path = "/users", tag = "users", request_body = NewUser,
    responses((status = 201, body = Invited), (status = 409, description = "`name_taken` or `email_taken`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<NewUser>,
) -> Result<Response, ApiError> {
    check_name(&body.name).map_err(|bad| ApiError::field("name", bad))?;
    let display_name = optional("display_name", body.display_name, DISPLAY_NAME_CHARS_MAX)?;
    let email = email(body.email)?;
    check_grants(&caller, &body.grants)?;
    let now = state.now();
    let secret = secrets::new(LINK)?;
    let hash = secrets::hash(LINK, &secret).ok_or_else(ApiError::internal)?;
    let new = NewMember {
        organisation: caller.user.organisation,
        name: &body.name,
        display_name: display_name.as_deref(),
        email: email.as_deref(),
        one_time_hash: None,
        grants: &body.grants,
    };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let id = done(users_admin::insert(&transaction, &new, &caller.by(), now).await?)?;
    let expires_at = users_admin::link(&transaction, id, &hash, &caller.by(), now).await?;
    let user = users_admin::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(user = %id, by = caller.user.name, "user added");
    let invitation = PasswordLink { link: address(&state, &secret), expires_at };
    Ok((StatusCode::CREATED, Extension(Secret), Json(Invited { user, invitation })).into_response())
}

/// Change a user, or disable or enable them.
#[utoipa::path(patch, path = "/users/{id}", tag = "users", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = UserChange, responses((status = 200, body = Member), (status = 404),
        (status = 409, description = "`email_taken` or `last_admin`"), (status = 412, description = "`changed_meanwhile`")))]
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<UserChange>,
) -> Result<Tagged<Member>, ApiError> {
    let display_name =
        body.display_name.map(|name| optional("display_name", name, DISPLAY_NAME_CHARS_MAX)).transpose()?;
    let email = body.email.map(email).transpose()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = users_admin::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&editable(&before))?;
    let after = Profile {
        display_name: display_name.unwrap_or_else(|| before.display_name.clone()),
        email: email.unwrap_or_else(|| before.email.clone()),
        disabled: body.disabled.unwrap_or(before.disabled),
    };
    done(users_admin::change(&transaction, &before, &after, &caller.by(), state.now()).await?)?;
    let found = users_admin::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(user = %id, by = caller.user.name, "user changed");
    Ok(tagged(found))
}

/// Say what a user may do, and where.
#[utoipa::path(put, path = "/users/{id}/grants", tag = "users", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = Grants, responses((status = 200, body = Member), (status = 404),
        (status = 409, description = "`last_admin`"), (status = 412, description = "`changed_meanwhile`")))]
pub async fn grant(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<Grants>,
) -> Result<Tagged<Member>, ApiError> {
    check_grants(&caller, &body.grants)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = users_admin::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&editable(&before))?;
    done(users_admin::grant(&transaction, &before, &body.grants, &caller.by(), state.now()).await?)?;
    let found = users_admin::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    tracing::info!(user = %id, by = caller.user.name, "grants changed");
    Ok(tagged(found))
}

/// A link with which a user chooses a new password, once. Older links of theirs are void.
#[utoipa::path(post, path = "/users/{id}/password-link", tag = "users", params(("id" = Uuid, Path)),
    responses((status = 201, body = PasswordLink), (status = 404), (status = 409, description = "`disabled`")))]
pub async fn link(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Extension<Secret>, Json<PasswordLink>), ApiError> {
    let secret = secrets::new(LINK)?;
    let hash = secrets::hash(LINK, &secret).ok_or_else(ApiError::internal)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let user = users_admin::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if user.disabled {
        return Err(ApiError::conflict("disabled", "the user is disabled: enable them first"));
    }
    let expires_at = users_admin::link(&transaction, id, &hash, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(user = %id, by = caller.user.name, "password link made");
    Ok((StatusCode::CREATED, Extension(Secret), Json(PasswordLink { link: address(&state, &secret), expires_at })))
}

/// Behind `#`, so that it stands in no log.
fn address(state: &ApiState, secret: &str) -> String {
    format!("{}/#/password/{secret}", state.url().trim_end_matches('/'))
}

/// What a change is of.
fn editable(member: &Member) -> impl Serialize + use<'_> {
    (&member.display_name, &member.email, member.disabled, &member.grants)
}

fn tagged(member: Member) -> Tagged<Member> {
    let tag = super::etag::of(&editable(&member));
    Tagged::with(member, tag)
}

fn missing() -> ApiError {
    ApiError::not_found("user")
}

fn done(changed: Changed) -> Result<Uuid, ApiError> {
    match changed {
        Changed::Done(id) => Ok(id),
        Changed::NameTaken => Err(ApiError::conflict("name_taken", "the name is taken")),
        Changed::EmailTaken => Err(ApiError::conflict("email_taken", "the e-mail address is another user's")),
        Changed::LastAdmin => {
            let detail = "nobody would be left who may manage the organisation: make somebody else an admin first";
            Err(ApiError::conflict("last_admin", detail))
        }
    }
}

fn optional(field: &str, text: Option<String>, chars_max: usize) -> Result<Option<String>, ApiError> {
    let text = text.map(|text| written(field, &text, chars_max, false)).transpose()?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// No more than its form: whether it is somebody's shows when a message arrives.
fn email(text: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(text) = optional("email", text, EMAIL_CHARS_MAX)? else { return Ok(None) };
    let parts = text.rsplit_once('@').filter(|(name, host)| !name.is_empty() && !host.is_empty());
    if parts.is_none() || text.contains(char::is_whitespace) {
        return Err(ApiError::field("email", "is an address like ada@example.com"));
    }
    Ok(Some(text))
}

fn check_grants(caller: &Caller, grants: &[Grant]) -> Result<(), ApiError> {
    if grants.len() > GRANTS_MAX {
        return Err(ApiError::field("grants", format_args!("are at most {GRANTS_MAX}")));
    }
    let mut seen = std::collections::HashSet::new();
    for grant in grants {
        if grant.site.is_some_and(|site| caller.scope.at(site).is_none()) {
            return Err(ApiError::field("grants", "name a site that the organisation does not have"));
        }
        if !seen.insert(grant.site) {
            return Err(ApiError::field("grants", "name a site twice"));
        }
    }
    Ok(())
}
