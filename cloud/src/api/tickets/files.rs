//! Photos and files of a ticket: a body is taken as it is, and given back only as a file to be saved.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use uuid::Uuid;

use super::{
    super::{
        ApiState,
        access::Caller,
        etag::IfMatch,
        extract::{Params, Path},
        problem::{ApiError, FieldError},
    },
    locked,
    work::take_away,
};
use crate::{
    live::Change,
    store::{
        scoped,
        tickets::{
            files::{self, Kept, NewFile},
            read,
        },
    },
    tickets::files::{GIVEN_NAME_CHARS_MAX, MediaType, RefusedFile, disposition, media_type, name, sha256},
    views::Attachment,
};

/// How much of files is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes_max: usize,
    /// Of one ticket.
    pub count_max: usize,
}

/// Uploads at a time: each is held in memory until it is stored. Who comes then is asked to come later.
pub const UPLOADS_MAX: usize = 4;
/// The route whose bodies are larger than others', and may take longer to come.
pub const UPLOAD: &str = "/api/v1/tickets/{id}/attachments";

/// Add a photo or a file: PNG, JPEG, WebP, PDF, plain text or CSV (UTF-8), at most 10 MB unless the server says otherwise.
///
/// The body is the file, `Content-Type` says what it is (or `application/octet-stream`); the content must agree. What the ticket has
/// already is answered with 200 and not kept twice, so that an upload can be sent again; it needs no `Idempotency-Key`.
#[utoipa::path(post, path = "/tickets/{id}/attachments", tag = "tickets",
    params(("id" = Uuid, Path), ("name" = String, Query, min_length = 1, max_length = 255, description = "The file's name.")),
    request_body(content((Vec<u8> = "application/octet-stream"))),
    responses((status = 201, body = Attachment), (status = 200, description = "The ticket has it already.", body = Attachment),
        (status = 404), (status = 409, description = "`too_many_attachments`"), (status = 413), (status = 415)))]
pub async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    mut params: Params,
    request: Request,
) -> Result<(StatusCode, Json<Attachment>), ApiError> {
    let given = params.one("name", "the file's name, of 1 to 255 characters", |text| {
        (1..=GIVEN_NAME_CHARS_MAX).contains(&text.chars().count()).then(|| text.to_owned())
    });
    params.finish()?;
    let Some(given) = given else {
        let error = FieldError { field: "name".into(), message: "is needed: the file's name".into() };
        return Err(ApiError::fields("invalid_parameters", "a parameter is not as it should be", vec![error]));
    };
    let busy = || ApiError::unavailable("busy", "others send files; try again", std::time::Duration::from_secs(5));
    let _turn = state.0.uploads.clone().try_acquire_owned().map_err(|_| busy())?;
    let limits = state.0.parts.attachments;
    let declared =
        request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(ToOwned::to_owned);
    let content = content(request.into_body(), limits.bytes_max).await?;
    let (found, digest, content) = looked_at(content, declared).await?;
    let kept_name = name(&given, found);

    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = read::lock(&transaction, id, now).await?.ok_or_else(|| ApiError::not_found("ticket"))?;
    let new = NewFile { name: &kept_name, media_type: found, sha256: &digest, content: &content };
    let most = limits.count_max;
    let kept = files::keep(&transaction, &ticket, new, most, caller.user.id, &caller.by(), now).await?;
    let (status, file) = match kept {
        Kept::New(file) => (StatusCode::CREATED, file),
        Kept::Known(file) => (StatusCode::OK, file),
        Kept::TooMany => {
            let detail = format_args!("a ticket has at most {most} attachments");
            return Err(ApiError::conflict("too_many_attachments", detail));
        }
    };
    let answer = files::one(&transaction, id, file).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    if status == StatusCode::CREATED {
        tracing::info!(ticket = %id, attachment = %file, bytes = answer.size, user = caller.user.name, "file attached");
        state.tell(Change::Ticket(id));
    }
    Ok((status, Json(answer)))
}

/// A photo or a file, to be saved.
#[utoipa::path(get, path = "/tickets/{id}/attachments/{attachment}", tag = "tickets",
    params(("id" = Uuid, Path), ("attachment" = Uuid, Path)),
    responses((status = 200, description = "The file, as `Content-Disposition: attachment`.",
        content((Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/webp"), (Vec<u8> = "application/pdf"),
            (String = "text/plain"), (String = "text/csv"))), (status = 404)))]
pub async fn read_file(
    State(state): State<ApiState>,
    caller: Caller,
    Path((ticket, id)): Path<(Uuid, Uuid)>,
) -> Result<Response, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let file = files::one(&transaction, ticket, id).await?.ok_or_else(missing)?;
    drop(transaction);
    drop(client);
    let download = Download { state, caller, id, part: 0 };
    // A part is read when the one before has gone: a slow client holds no connection to the database.
    let parts = stream::try_unfold(download, |download| async move {
        download.next().await.inspect_err(|error| tracing::warn!(%error, "a download broke off"))
    });
    let mut response = Body::from_stream(parts).into_response();
    let headers = response.headers_mut();
    let text = file.media_type.starts_with("text/");
    let kind = if text { format!("{}; charset=utf-8", file.media_type) } else { file.media_type };
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_LENGTH, file.size.to_string()),
        (header::CONTENT_DISPOSITION, disposition(&file.name)),
    ] {
        headers.insert(name, HeaderValue::try_from(value).map_err(|_| ApiError::internal())?);
    }
    let sandbox = HeaderValue::from_static("sandbox; default-src 'none'; frame-ancestors 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, sandbox);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Throw a photo or a file away: one's own, until the ticket is closed, or (supervisors) any. `If-Match` is of the ticket.
#[utoipa::path(delete, path = "/tickets/{id}/attachments/{attachment}", tag = "tickets",
    params(("id" = Uuid, Path), ("attachment" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 403), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Path((id, file)): Path<(Uuid, Uuid)>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let ticket = locked(&transaction, id, &if_match, now).await?;
    let author = files::one(&transaction, id, file).await?.ok_or_else(missing)?.created_by_id;
    take_away(&caller, &ticket, author)?;
    if !files::remove(&transaction, &ticket, file, &caller.by(), now).await? {
        return Err(missing());
    }
    transaction.commit().await?;
    tracing::info!(ticket = %id, attachment = %file, user = caller.user.name, "file thrown away");
    state.tell(Change::Ticket(id));
    Ok(StatusCode::NO_CONTENT)
}

/// A file on its way to a client.
struct Download {
    state: ApiState,
    caller: Caller,
    id: Uuid,
    part: i32,
}

impl Download {
    /// The next bytes, and what is left.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, std::io::Error> {
        let mut client = self.state.store().client().await.map_err(std::io::Error::other)?;
        let transaction = scoped(&mut client, &self.caller.scope).await.map_err(std::io::Error::other)?;
        let part = files::part(&transaction, self.id, self.part).await.map_err(std::io::Error::other)?;
        drop(transaction);
        drop(client);
        self.part += 1;
        Ok(part.map(|bytes| (bytes.into(), self)))
    }
}

async fn content(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format_args!("a file has at most {bytes_max} bytes");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail))
        }
        Err(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", "the body broke off")),
    }
}

/// What a file is, and its digest: on a thread where that takes its time.
async fn looked_at(content: Bytes, declared: Option<String>) -> Result<(MediaType, [u8; 32], Bytes), ApiError> {
    let look = tokio::task::spawn_blocking(move || {
        media_type(&content, declared.as_deref()).map(|found| (found, sha256(&content), content))
    });
    let looked = look.await.map_err(|_| ApiError::internal())?;
    looked.map_err(|refused| match refused {
        RefusedFile::Empty => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "empty_file", refused),
        RefusedFile::NotTaken | RefusedFile::Another(_) => {
            ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", refused)
        }
    })
}

fn missing() -> ApiError {
    ApiError::not_found("attachment")
}
