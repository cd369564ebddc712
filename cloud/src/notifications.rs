//! Who is told of an incident, over which channel and when: the rule. No I/O here.
//!
//! A *notice* says that a role at a site, or one user, is to be told of something. [`plan`] makes *deliveries* of it: one for each
//! person by e-mail, as they chose, and one for each of the organisation's webhooks. What falls into somebody's quiet hours, or
//! above the limit for a recipient and hour, is held, and gathered into one digest later.

pub mod address;
pub mod message;
pub mod quiet;
pub mod retry;
pub mod signature;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{alarms::Severity, users::Role};
use quiet::Quiet;

/// A notice that nobody could be told of for so long is history.
pub const NOTICE_AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// The time in which the limits of [`Limits`] count.
pub const WINDOW: SignedDuration = SignedDuration::from_hours(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    Webhook,
    Email,
}

impl Channel {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Email => "email",
        }
    }
}

/// Why somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Opened,
    SeverityRose,
    Escalated,
    Assigned,
}

/// Whom a notice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Everybody whose greatest role at the site is this one; where there is nobody, those with the next one above.
    Role(Role),
    User(Uuid),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub site: Uuid,
    pub reason: Reason,
    pub severity: Severity,
    pub audience: Audience,
}

/// What a user chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub email: bool,
    pub severity_min: Severity,
    /// `None`: all.
    pub sites: Option<Vec<Uuid>>,
    pub quiet: Option<Quiet>,
    /// What is critical does not wait for the end of quiet hours.
    pub critical_passes: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Self { email: true, severity_min: Severity::Low, sites: None, quiet: None, critical_passes: true }
    }
}

/// What a recipient was sent within [`WINDOW`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recent {
    pub count: u32,
    /// When the first of them was made.
    pub first: Option<Timestamp>,
}

/// Somebody who has a role at the notice's site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub user: Uuid,
    /// The greatest at the site.
    pub role: Role,
    pub email: Option<String>,
    pub choice: Choice,
    pub recent: Recent,
}

/// A webhook of the notice's organisation that is switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub id: Uuid,
    pub name: String,
    pub severity_min: Severity,
    /// `None`: all.
    pub sites: Option<Vec<Uuid>>,
    pub recent: Recent,
}

/// Deliveries to one recipient within [`WINDOW`]; what comes after that is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub emails: u32,
    pub webhook_calls: u32,
}

/// Why a delivery waits to be gathered with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    QuietHours,
    /// More than the limit for a recipient and hour.
    Limit,
}

impl Hold {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QuietHours => "quiet_hours",
            Self::Limit => "limit",
        }
    }
}

/// Why nothing is sent though it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The user has no e-mail address.
    NoAddress,
    /// The configuration names no mail server.
    NoMailServer,
    /// The incident was closed while this was held.
    Closed,
    /// It is part of a digest.
    InDigest,
    /// The user has no role at the site any more.
    NoRole,
    /// The webhook was switched off or deleted.
    SwitchedOff,
}

impl Skip {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoAddress => "no_address",
            Self::NoMailServer => "no_mail_server",
            Self::Closed => "closed",
            Self::InDigest => "in_digest",
            Self::NoRole => "no_role",
            Self::SwitchedOff => "switched_off",
        }
    }
}

/// When something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Now,
    Held { until: Timestamp, hold: Hold },
    Never(Skip),
}

/// A delivery to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub channel: Channel,
    /// The user or the webhook.
    pub to: Uuid,
    /// The address or the webhook's name.
    pub recipient: String,
    pub when: When,
}

/// What is to be delivered of a notice.
#[must_use]
pub fn plan(
    notice: &Notice,
    people: &[Person],
    hooks: &[Hook],
    limits: Limits,
    mail: bool,
    now: Timestamp,
) -> Vec<Planned> {
    let hooked = hooks.iter().filter(|hook| of_interest(notice, hook.severity_min, hook.sites.as_ref()));
    let hooked = hooked.map(|hook| Planned {
        channel: Channel::Webhook,
        to: hook.id,
        recipient: hook.name.clone(),
        when: limited(hook.recent, limits.webhook_calls, now),
    });
    let told = audience(notice.audience, people).into_iter().filter(|person| {
        // What one is asked to do oneself is of interest however grave it is.
        let least = if notice.reason == Reason::Assigned { Severity::Low } else { person.choice.severity_min };
        person.choice.email && of_interest(notice, least, person.choice.sites.as_ref())
    });
    let told = told.map(|person| Planned {
        channel: Channel::Email,
        to: person.user,
        recipient: person.email.clone().unwrap_or_default(),
        when: mailed(notice, person, limits.emails, mail, now),
    });
    hooked.chain(told).collect()
}

fn of_interest(notice: &Notice, least: Severity, sites: Option<&Vec<Uuid>>) -> bool {
    notice.severity >= least && sites.is_none_or(|sites| sites.contains(&notice.site))
}

fn audience(audience: Audience, people: &[Person]) -> Vec<&Person> {
    match audience {
        Audience::User(user) => people.iter().filter(|person| person.user == user).collect(),
        Audience::Role(least) => {
            let next = people.iter().map(|person| person.role).filter(|role| *role >= least).min();
            people.iter().filter(|person| Some(person.role) == next).collect()
        }
    }
}

fn mailed(notice: &Notice, person: &Person, limit: u32, mail: bool, now: Timestamp) -> When {
    if person.email.is_none() {
        return When::Never(Skip::NoAddress);
    }
    if !mail {
        return When::Never(Skip::NoMailServer);
    }
    let passes = person.choice.critical_passes && notice.severity == Severity::Critical;
    let quiet = person.choice.quiet.as_ref().filter(|_| !passes).and_then(|quiet| quiet.until(now));
    match quiet {
        Some(until) => When::Held { until, hold: Hold::QuietHours },
        None => limited(person.recent, limit, now),
    }
}

fn limited(recent: Recent, limit: u32, now: Timestamp) -> When {
    if recent.count < limit {
        return When::Now;
    }
    let until = recent.first.unwrap_or(now).saturating_add(WINDOW).unwrap_or(now);
    When::Held { until: until.max(now), hold: Hold::Limit }
}

#[cfg(test)]
mod tests;
