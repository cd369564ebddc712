//! What somebody chose to be told of.

use axum::extract::State;
use jiff::civil::{Time, Weekday};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{self, IfMatch, Tagged},
    extract::Body,
    problem::ApiError,
};
use crate::{
    alarms::Severity,
    notifications::{
        Choice,
        quiet::{BadQuiet, Quiet, bit},
    },
    store::{choices, scoped, webhooks},
};

/// Sites that a choice or a webhook may name.
pub(super) const SITES_MAX: usize = 500;
const ZONE_CHARS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Day {
    const ALL: [(Self, Weekday); 7] = [
        (Self::Monday, Weekday::Monday),
        (Self::Tuesday, Weekday::Tuesday),
        (Self::Wednesday, Weekday::Wednesday),
        (Self::Thursday, Weekday::Thursday),
        (Self::Friday, Weekday::Friday),
        (Self::Saturday, Weekday::Saturday),
        (Self::Sunday, Weekday::Sunday),
    ];

    fn bit(self) -> u8 {
        Self::ALL.iter().find(|(day, _)| *day == self).map_or(0, |(_, day)| bit(*day))
    }
}

/// When e-mails wait: by the clock of a place.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuietHours {
    /// The days on which they begin.
    #[schema(min_items = 1, max_items = 7)]
    days: Vec<Day>,
    /// `HH:MM`.
    #[schema(example = "22:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    from: String,
    /// `HH:MM`; not after `from`, it is on the day after.
    #[schema(example = "06:00", pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    to: String,
    /// An IANA name.
    #[schema(example = "Europe/Berlin", max_length = 64)]
    time_zone: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NotificationChoice {
    /// Whether to be told by e-mail.
    email: bool,
    /// Incidents below are not told; what is assigned to oneself is told always.
    severity_min: Severity,
    /// `null`: all that one has a role at.
    #[schema(max_items = 500)]
    sites: Option<Vec<Uuid>>,
    /// What falls into them comes in one message when they end, if it is still open then; `null`: none.
    quiet: Option<QuietHours>,
    /// What is critical comes at once, also in quiet hours.
    critical_passes: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NotificationSettings {
    /// Whether to be told by e-mail.
    email: bool,
    /// Incidents below are not told; what is assigned to oneself is told always.
    severity_min: Severity,
    /// `null`: all that one has a role at.
    sites: Option<Vec<Uuid>>,
    /// What falls into them comes in one message when they end, if it is still open then; `null`: none.
    quiet: Option<QuietHours>,
    /// What is critical comes at once, also in quiet hours.
    critical_passes: bool,
    /// Where e-mails go; `null`: nowhere, until an admin sets an address.
    address: Option<String>,
    /// Whether this server sends e-mails.
    mail_available: bool,
}

/// What you are told of.
#[utoipa::path(get, path = "/me/notifications", tag = "notifications",
    responses((status = 200, body = NotificationSettings)))]
pub async fn get(State(state): State<ApiState>, caller: Caller) -> Result<Tagged<NotificationSettings>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let (address, choice) = choices::get(&transaction, caller.user.id, false).await?;
    Ok(settings(&state, address, &choice))
}

/// Choose what you are told of; all of it at once.
#[utoipa::path(put, path = "/me/notifications", tag = "notifications", params(("If-Match" = Option<String>, Header)),
    request_body = NotificationChoice,
    responses((status = 200, body = NotificationSettings), (status = 412, description = "`changed_meanwhile`")))]
pub async fn put(
    State(state): State<ApiState>,
    caller: Caller,
    if_match: IfMatch,
    Body(body): Body<NotificationChoice>,
) -> Result<Tagged<NotificationSettings>, ApiError> {
    let choice = chosen(body)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    if let Some(sites) = &choice.sites
        && !webhooks::sites_known(&transaction, sites).await?
    {
        return Err(ApiError::field("sites", "has a site that there is not"));
    }
    let (address, before) = choices::get(&transaction, caller.user.id, true).await?;
    if_match.check(&shown(&before))?;
    choices::put(&transaction, caller.user.id, &before, &choice, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    Ok(settings(&state, address, &choice))
}

fn settings(state: &ApiState, address: Option<String>, choice: &Choice) -> Tagged<NotificationSettings> {
    let choice = shown(choice);
    let tag = etag::of(&choice);
    let NotificationChoice { email, severity_min, sites, quiet, critical_passes } = choice;
    let mail_available = state.notifications().mail;
    let settings = NotificationSettings { email, severity_min, sites, quiet, critical_passes, address, mail_available };
    Tagged::with(settings, tag)
}

fn chosen(body: NotificationChoice) -> Result<Choice, ApiError> {
    let quiet = body.quiet.map(|quiet| {
        let (from, to) = (minutes("quiet.from", &quiet.from)?, minutes("quiet.to", &quiet.to)?);
        if quiet.days.len() > Day::ALL.len() {
            return Err(ApiError::field("quiet.days", "has at most 7 days"));
        }
        let days = quiet.days.iter().fold(0, |bits, day| bits | day.bit());
        let zone: &str = if quiet.time_zone.chars().count() <= ZONE_CHARS_MAX { &quiet.time_zone } else { "" };
        Quiet::new(days, from, to, zone).map_err(|error| match error {
            BadQuiet::Days => ApiError::field("quiet.days", error),
            BadQuiet::Minutes => ApiError::field("quiet.from", error),
            BadQuiet::Zone => ApiError::field("quiet.time_zone", error),
        })
    });
    Ok(Choice {
        email: body.email,
        severity_min: body.severity_min,
        sites: body.sites.map(some_sites).transpose()?,
        quiet: quiet.transpose()?,
        critical_passes: body.critical_passes,
    })
}

/// Each once, and not too many.
pub(super) fn some_sites(mut sites: Vec<Uuid>) -> Result<Vec<Uuid>, ApiError> {
    if sites.len() > SITES_MAX {
        return Err(ApiError::field("sites", format_args!("has at most {SITES_MAX} sites")));
    }
    sites.sort_unstable();
    sites.dedup();
    Ok(sites)
}

fn minutes(field: &str, text: &str) -> Result<u16, ApiError> {
    let time = (text.len() == 5).then(|| Time::strptime("%H:%M", text).ok()).flatten();
    let time = time.ok_or_else(|| ApiError::field(field, "is a time like 22:00"))?;
    Ok(u16::try_from(i16::from(time.hour()) * 60 + i16::from(time.minute())).unwrap_or(0))
}

fn shown(choice: &Choice) -> NotificationChoice {
    let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let quiet = choice.quiet.as_ref().map(|quiet| QuietHours {
        days: Day::ALL.iter().filter(|(day, _)| quiet.days() & day.bit() != 0).map(|(day, _)| *day).collect(),
        from: time(quiet.from_min()),
        to: time(quiet.to_min()),
        time_zone: quiet.zone().to_owned(),
    });
    NotificationChoice {
        email: choice.email,
        severity_min: choice.severity_min,
        sites: choice.sites.clone(),
        quiet,
        critical_passes: choice.critical_passes,
    }
}
