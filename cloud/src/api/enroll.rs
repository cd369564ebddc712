//! Enrolment: a gateway brings a one-time token and gets what it needs to deliver.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use gemba_shared::enrolment::{PATH, Request, Response};

use super::{extract::Body, problem::ApiError};
use crate::{
    clock,
    enrolment::{Enrolments, Refusal},
};

/// This route's part of the document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(enroll))]
pub(super) struct Document;

/// The route, for [`super::router`].
pub fn routes(enrolments: Arc<Enrolments>) -> Router {
    Router::new().route(PATH, post(enroll)).with_state(enrolments)
}

/// Enrol a gateway.
///
/// `gemba-edge enroll` does this with the one-time token of `gemba-cloud gateway add`.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "gateways", request_body = serde_json::Value,
    responses((status = 200, body = serde_json::Value, description = "The gateway's id, and how to deliver."),
        (status = 403, description = "The token is not good (any more).")), security(()))]
async fn enroll(
    State(enrolments): State<Arc<Enrolments>>,
    Body(request): Body<Request>,
) -> Result<Json<Response>, ApiError> {
    let refusal = match enrolments.enrol(&request, clock::now()).await {
        Ok(response) => return Ok(Json(response)),
        Err(refusal) => refusal,
    };
    Err(match refusal {
        Refusal::Malformed(error) => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, refusal.reason(), error),
        Refusal::Token => ApiError::new(StatusCode::FORBIDDEN, refusal.reason(), &refusal),
        Refusal::Store(error) => error.into(),
        Refusal::Random => ApiError::internal(),
    })
}
