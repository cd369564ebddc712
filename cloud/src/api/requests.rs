//! What is around every request: its id, its deadline, its line in the log, what is counted of it, headers for all answers.

use std::time::{Duration, Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus_client::metrics::gauge::Gauge;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{ApiState, DEADLINE, UPLOAD_DEADLINE, problem::ApiError, source, tickets};
use crate::metrics::{RequestEnd, Route};

/// The outermost layer of the routes.
pub async fn around(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let id = Uuid::now_v7();
    let source = source::find(&request, id, &state.0.parts.trusted_proxies);
    request.extensions_mut().insert(source);
    let started = Instant::now();
    let method = request.method().clone();
    // The route, not the path: names and ids of a plant are not for every log.
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let upload = method == Method::POST && route == tickets::files::UPLOAD;
    let deadline = if upload { UPLOAD_DEADLINE } else { DEADLINE };
    let metrics = &state.0.parts.metrics;
    metrics.requests_under_way.inc();
    let under_way = UnderWay(&metrics.requests_under_way);
    // Whatever is logged meanwhile has the id.
    let span = tracing::info_span!("request", %id, %method, route);
    let answer = tokio::time::timeout(deadline, next.run(request).instrument(span.clone())).await;
    drop(under_way);
    let late = || ApiError::unavailable("deadline", "this took too long; ask for less", Duration::from_secs(5));
    let mut response = answer.unwrap_or_else(|_| late().into_response());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let status = response.status().as_u16();
    let took = started.elapsed();
    span.in_scope(|| tracing::debug!(address = %source.address, status, ms = took.as_millis() as u64, "request"));
    let method = known(&method);
    metrics.requests.get_or_create(&RequestEnd { method, route: route.clone(), status }).inc();
    metrics.request_seconds.get_or_create(&Route { method, route }).observe(took.as_secs_f64());
    response
}

/// Counted down also when the client goes away.
struct UnderWay<'a>(&'a Gauge);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Clients may invent methods, and each would be a line of figures.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
