//! The past of a machine as a file.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use jiff::SignedDuration;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    ApiState,
    access::Caller,
    extract::Params,
    problem::{ApiError, FieldError},
};
use crate::{
    export::{Batch, Format, Of, Writer},
    history::Level,
    store::{
        blocks,
        export::{self, Place, Wanted},
        scoped,
    },
};

/// The range where none is asked for.
const RANGE_DEFAULT: SignedDuration = SignedDuration::from_hours(24);

/// The past of a machine as CSV or Parquet.
///
/// `of=sensors` (the default): a row for each sensor and time, with `readings`, `min`, `max`, `mean`, `sd`, `last` (of hours and
/// days without `quality`). `of=machine`: a row for each time, with score, health, mode and energy. In order of time; a machine that
/// others are shown as a part of is followed by those. Numbers are read back exactly; an empty cell is none. What went wrong on
/// the way ends the connection, so that half a file does not look like a whole one.
#[utoipa::path(get, path = "/export", tag = "machines",
    params(("machine" = Uuid, Query), ("from" = Option<Timestamp>, Query, description = "Default: 24 hours before `to`."),
        ("to" = Option<Timestamp>, Query, description = "Exclusive; default: now."),
        ("level" = Option<String>, Query, description = "`intervals` (the default), `hours` or `days`."),
        ("of" = Option<String>, Query, description = "`sensors` (the default) or `machine`."),
        ("format" = Option<String>, Query, description = "`csv` (the default) or `parquet`.")),
    responses((status = 200, description = "CSV with a header, or Parquet.",
        content((String = "text/csv"), (Vec<u8> = "application/vnd.apache.parquet"))), (status = 404)))]
pub async fn read(State(state): State<ApiState>, caller: Caller, mut params: Params) -> Result<Response, ApiError> {
    let machine = params.id("machine");
    let (from, to) = (params.time("from"), params.time("to"));
    let level = params.one("level", "intervals, hours or days", |text| match text {
        "intervals" => Some(Level::Interval),
        "hours" => Some(Level::Hour),
        "days" => Some(Level::Day),
        _ => None,
    });
    let of = params.one("of", "sensors or machine", |text| match text {
        "sensors" => Some(Of::Sensors),
        "machine" => Some(Of::Machine),
        _ => None,
    });
    let format = params.one("format", "csv or parquet", |text| match text {
        "csv" => Some(Format::Csv),
        "parquet" => Some(Format::Parquet),
        _ => None,
    });
    params.finish()?;
    let Some(machine) = machine else {
        let error = FieldError { field: "machine".into(), message: "is needed".into() };
        return Err(ApiError::fields("invalid_parameters", "a parameter is not as it should be", vec![error]));
    };
    let to = to.unwrap_or_else(|| state.now());
    let from = from.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT).unwrap_or(to));
    if to <= from {
        return Err(crate::series::BadRange::Empty.into());
    }
    let busy = || ApiError::unavailable("busy", "others export; try again", std::time::Duration::from_secs(10));
    let turn = state.0.exports.clone().try_acquire_owned().map_err(|_| busy())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let parts = export::parts(&transaction, machine).await?;
    drop(transaction);
    drop(client);
    if parts.is_empty() {
        return Err(ApiError::not_found("machine"));
    }
    let format = format.unwrap_or(Format::Csv);
    let wanted = Wanted { parts, of: of.unwrap_or(Of::Sensors), level: level.unwrap_or(Level::Interval), from, to };
    let columns = wanted.columns();
    let writer = Writer::new(format, &columns).map_err(|error| {
        tracing::error!(%error, "an export cannot be begun");
        ApiError::internal()
    })?;
    let export =
        Export { place: Some(wanted.start()), wanted, state, caller, writer, columns: Some(columns), _turn: turn };
    // A page is read when the one before has gone: a slow client holds nothing but its place.
    let pages = stream::try_unfold(Some(export), |export| async move {
        let Some(export) = export else { return Ok::<_, std::io::Error>(None) };
        export.next().await.map(Some).inspect_err(|error| tracing::warn!(%error, "an export broke off"))
    });
    let (kind, name) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "attachment; filename=\"history.csv\""),
        Format::Parquet => ("application/vnd.apache.parquet", "attachment; filename=\"history.parquet\""),
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], Body::from_stream(pages)).into_response())
}

/// A file under way.
struct Export {
    state: ApiState,
    caller: Caller,
    wanted: Wanted,
    place: Option<Place>,
    writer: Writer,
    /// Until the first bytes are written.
    columns: Option<Batch>,
    _turn: OwnedSemaphorePermit,
}

impl Export {
    /// The next bytes, and what is left.
    async fn next(mut self) -> Result<(Bytes, Option<Self>), std::io::Error> {
        let mut bytes = match self.columns.take() {
            Some(columns) => self.writer.write(&columns).map_err(std::io::Error::other)?,
            None => Vec::new(),
        };
        let Some(place) = self.place else {
            bytes.extend(self.writer.finish().map_err(std::io::Error::other)?);
            return Ok((bytes.into(), None));
        };
        let mut client = self.state.store().client().await.map_err(std::io::Error::other)?;
        let transaction = scoped(&mut client, &self.caller.scope).await.map_err(std::io::Error::other)?;
        blocks::one_moment(&transaction).await.map_err(std::io::Error::other)?;
        let (batch, next) = export::page(&transaction, &self.wanted, place).await.map_err(std::io::Error::other)?;
        drop(transaction);
        drop(client);
        self.place = next;
        bytes.extend(self.writer.write(&batch).map_err(std::io::Error::other)?);
        Ok((bytes.into(), Some(self)))
    }
}
