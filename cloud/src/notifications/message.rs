//! What is said: the body of a webhook's call, and the text of an e-mail, from the facts that were kept with the delivery.
//!
//! A call has the same body at each attempt:
//!
//! ```json
//! {"type": "incident.opened", "timestamp": "2026-11-26T21:00:00Z", "data": {
//!   "notice_id": "…", "reason": "opened", "severity": "high",
//!   "site": {"id": "…", "name": "North"},
//!   "incident": {"id": "…", "opened_at": "…", "alarm_count": 3, "alarms": [
//!      {"id": "…", "machine": "pump-3", "severity": "high", "message": "…", "raised_at": "…"}], "url": "https://…/#/incidents/…"},
//!   "machine": {"id": "…", "name": "pump-3", "url": "https://…/#/machines/…"},
//!   "to": {"role": "operator"}}}
//! ```
//!
//! Of a ticket (`ticket.assigned`) `data.incident` is `null`, and instead there is
//! `"ticket": {"id": "…", "number": 12, "title": "…", "due_at": "…", "url": "https://…/#/tickets/…"}`; `severity` is its priority then.
//!
//! `type` is `incident.opened`, `incident.severity_rose`, `incident.escalated`, `incident.assigned`, `ticket.assigned`, `digest` (`data.items` are
//! such objects, the oldest first, at most [`DIGEST_ITEMS_MAX`]; `data.count` says how many there were; `data.hold` why they waited), or `test`.
//! `machine` is `null` where the incident began with a gateway's own alarm.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Hold, Reason};
use crate::alarms::Severity;

/// Alarms of an incident that a message names; the newest.
pub const ALARMS_MAX: usize = 10;
/// Notices that a digest tells of.
pub const DIGEST_ITEMS_MAX: usize = 50;
/// The longest subject, in characters.
const SUBJECT_CHARS_MAX: usize = 150;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Named {
    pub id: Uuid,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlarmFacts {
    pub id: Uuid,
    /// The machine's name, or the gateway's.
    pub machine: String,
    pub severity: Severity,
    pub message: String,
    pub raised_at: Timestamp,
}

/// A ticket that somebody is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketFacts {
    pub id: Uuid,
    pub number: i64,
    pub title: String,
    pub due_at: Option<Timestamp>,
}

/// What a notice was about, when it was given: an incident, or a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub notice: Uuid,
    pub at: Timestamp,
    pub reason: Reason,
    pub severity: Severity,
    pub site: Named,
    pub incident: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<TicketFacts>,
    /// Or made.
    pub opened_at: Timestamp,
    pub alarm_count: i64,
    pub alarms: Vec<AlarmFacts>,
    pub machine: Option<Named>,
    /// The role or the user's name that it was for.
    pub role: Option<String>,
    pub user: Option<String>,
}

impl Facts {
    /// The incident or the ticket.
    #[must_use]
    pub fn subject(&self) -> Uuid {
        self.ticket.as_ref().map(|ticket| ticket.id).or(self.incident).unwrap_or(self.notice)
    }

    /// What its link is called, and where it leads.
    fn link(&self, page: &str) -> (&'static str, String) {
        match &self.ticket {
            Some(ticket) => ("Open the ticket", format!("{page}/#/tickets/{}", ticket.id)),
            None => ("Open the incident", format!("{page}/#/incidents/{}", self.subject())),
        }
    }
}

/// What a delivery says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "few are in memory at a time, and nearly all are notices")]
pub enum Content {
    Notice(Facts),
    Digest { items: Vec<Facts>, count: usize, hold: Hold },
    Test { webhook: String },
}

impl Content {
    /// Of notices that were held, the oldest first.
    #[must_use]
    pub fn digest(mut items: Vec<Facts>, hold: Hold) -> Self {
        let count = items.len();
        // The newest say how things are.
        items.drain(..count.saturating_sub(DIGEST_ITEMS_MAX));
        Self::Digest { items, count, hold }
    }
}

/// The body of a webhook's call; `page` is the URL of the web page, without a slash at its end.
#[must_use]
pub fn body(content: &Content, page: &str, made_at: Timestamp) -> String {
    let (kind, data) = match content {
        Content::Notice(facts) => (
            match (facts.reason, &facts.ticket) {
                (Reason::Opened, _) => "incident.opened",
                (Reason::SeverityRose, _) => "incident.severity_rose",
                (Reason::Escalated, _) => "incident.escalated",
                (Reason::Assigned, None) => "incident.assigned",
                (Reason::Assigned, Some(_)) => "ticket.assigned",
            },
            data(facts, page),
        ),
        Content::Digest { items, count, hold } => {
            let items: Vec<Value> = items.iter().map(|facts| data(facts, page)).collect();
            ("digest", json!({"hold": hold, "count": count, "items": items}))
        }
        Content::Test { webhook } => ("test", json!({"webhook": webhook, "url": page})),
    };
    json!({"type": kind, "timestamp": made_at, "data": data}).to_string()
}

fn data(facts: &Facts, page: &str) -> Value {
    let machine = facts.machine.as_ref();
    let mut data = json!({
        "notice_id": facts.notice,
        "reason": facts.reason,
        "severity": facts.severity,
        "site": facts.site,
        "incident": facts.incident.map(|id| json!({
            "id": id,
            "opened_at": facts.opened_at,
            "alarm_count": facts.alarm_count,
            "alarms": facts.alarms,
            "url": facts.link(page).1,
        })),
        "machine": machine.map(|machine| {
            json!({"id": machine.id, "name": machine.name, "url": format!("{page}/#/machines/{}", machine.id)})
        }),
        "to": {"role": facts.role, "user": facts.user},
    });
    if let Some(TicketFacts { id, number, title, due_at }) = &facts.ticket {
        data["ticket"] = json!({
            "id": id, "number": number, "title": title, "due_at": due_at, "url": facts.link(page).1,
        });
    }
    data
}

/// Where a user chooses what to be told of.
#[must_use]
pub fn choice_url(page: &str) -> String {
    format!("{page}/#/notifications")
}

/// The text of an e-mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// In one line.
    pub subject: String,
    pub plain: String,
    pub html: String,
}

/// What an e-mail says. Names come from gateways and people: in the subject they stay in one line, in HTML they are escaped.
#[must_use]
pub fn text(content: &Content, page: &str) -> Text {
    match content {
        Content::Notice(facts) => notice(facts, page),
        Content::Digest { items, count, hold } => digest(items, *count, *hold, page),
        Content::Test { .. } => {
            let paragraphs = ["This is a test: whoever reads it is told of incidents.".to_owned()];
            written("Gemba: a test", &paragraphs, &[], page)
        }
    }
}

/// It sorts: the severity first, then the machine, then the site.
fn subject(facts: &Facts) -> String {
    let word = facts.severity.as_str().to_uppercase();
    let machine = facts.machine.as_ref().map_or("gateway", |machine| machine.name.as_str());
    let what = match facts.reason {
        Reason::Opened => "",
        Reason::SeverityRose => ": more severe",
        Reason::Escalated => ": nobody has taken it",
        Reason::Assigned => ": assigned to you",
    };
    if let Some(TicketFacts { number, title, .. }) = &facts.ticket {
        return format!("[{word}] #{number} {title} ({}){what}", facts.site.name);
    }
    format!("[{word}] {machine} ({}){what}", facts.site.name)
}

fn notice(facts: &Facts, page: &str) -> Text {
    let why = match facts.reason {
        Reason::Opened => "An incident has begun.",
        Reason::SeverityRose => "An incident has become more severe.",
        Reason::Escalated => "Nobody has taken an incident yet; it is handed on to you.",
        Reason::Assigned if facts.ticket.is_some() => "A ticket was assigned to you.",
        Reason::Assigned => "An incident was assigned to you.",
    };
    let mut paragraphs = vec![why.to_owned(), heading(facts)];
    let mut lines: Vec<(String, Option<String>)> = facts.alarms.iter().map(|alarm| (alarm_line(alarm), None)).collect();
    let more = facts.alarm_count - facts.alarms.len() as i64;
    if more > 0 {
        lines.push((format!("and {more} more"), None));
    }
    let (open, url) = facts.link(page);
    lines.push((open.to_owned(), Some(url)));
    paragraphs.retain(|text| !text.is_empty());
    written(&subject(facts), &paragraphs, &lines, page)
}

fn digest(items: &[Facts], count: usize, hold: Hold, page: &str) -> Text {
    let greatest = items.iter().map(|facts| facts.severity).max().unwrap_or(Severity::Low);
    let site = items.first().map_or("", |facts| facts.site.name.as_str());
    let subject = format!("[{}] {count} notices ({site})", greatest.as_str().to_uppercase());
    let why = match hold {
        Hold::QuietHours => "came in your quiet hours and are still open.",
        Hold::Limit => "came within an hour in which you were sent as many messages as you get singly.",
    };
    let lines: Vec<(String, Option<String>)> =
        items.iter().map(|facts| (heading(facts), Some(facts.link(page).1))).collect();
    written(&subject, &[format!("{count} notices {why}")], &lines, page)
}

fn heading(facts: &Facts) -> String {
    if let Some(TicketFacts { number, title, due_at, .. }) = &facts.ticket {
        let due = due_at.map_or_else(String::new, |due| format!(", due {}", minute(due)));
        return format!("#{number} {title}, {}{due}", facts.site.name);
    }
    let machine = facts.machine.as_ref().map_or("A gateway", |machine| machine.name.as_str());
    format!("{}: {machine}, {}, since {}", facts.severity.as_str(), facts.site.name, minute(facts.opened_at))
}

fn alarm_line(alarm: &AlarmFacts) -> String {
    format!("{} {} ({}): {}", minute(alarm.raised_at), alarm.machine, alarm.severity.as_str(), alarm.message)
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn written(subject: &str, paragraphs: &[String], lines: &[(String, Option<String>)], page: &str) -> Text {
    let (mut plain, mut html) = (String::new(), String::from("<!doctype html><html><body>"));
    for paragraph in paragraphs {
        write!(plain, "{}\n\n", one_line(paragraph)).ok();
        write!(html, "<p>{}</p>", escaped(paragraph)).ok();
    }
    html.push_str("<ul>");
    for (line, url) in lines {
        if let Some(url) = url {
            writeln!(plain, "- {}: {url}", one_line(line)).ok();
            write!(html, "<li><a href=\"{}\">{}</a></li>", escaped(url), escaped(line)).ok();
        } else {
            writeln!(plain, "- {}", one_line(line)).ok();
            write!(html, "<li>{}</li>", escaped(line)).ok();
        }
    }
    let choice = choice_url(page);
    writeln!(plain, "\nChoose what you are told of: {choice}").ok();
    write!(html, "</ul><p><a href=\"{}\">Choose what you are told of</a></p></body></html>", escaped(&choice)).ok();
    Text { subject: one_line(subject).chars().take(SUBJECT_CHARS_MAX).collect(), plain, html }
}

/// Without line ends and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c }).collect()
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn facts() -> Facts {
        let at: Timestamp = "2026-11-26T21:00:00Z".parse().unwrap();
        Facts {
            notice: Uuid::from_u128(1),
            at,
            reason: Reason::Opened,
            severity: Severity::High,
            site: Named { id: Uuid::from_u128(2), name: "North".into() },
            incident: Some(Uuid::from_u128(3)),
            ticket: None,
            opened_at: at,
            alarm_count: 2,
            alarms: vec![AlarmFacts {
                id: Uuid::from_u128(4),
                machine: "pump-3".into(),
                severity: Severity::High,
                message: "It is loud".into(),
                raised_at: at,
            }],
            machine: Some(Named { id: Uuid::from_u128(5), name: "pump-3".into() }),
            role: Some("operator".into()),
            user: None,
        }
    }

    #[test]
    fn a_call() {
        let facts = facts();
        let at = facts.at;
        let value: Value =
            serde_json::from_str(&body(&Content::Notice(facts.clone()), "https://gemba.example", at)).unwrap();
        expect![[r#"
            {
              "data": {
                "incident": {
                  "alarm_count": 2,
                  "alarms": [
                    {
                      "id": "00000000-0000-0000-0000-000000000004",
                      "machine": "pump-3",
                      "message": "It is loud",
                      "raised_at": "2026-11-26T21:00:00Z",
                      "severity": "high"
                    }
                  ],
                  "id": "00000000-0000-0000-0000-000000000003",
                  "opened_at": "2026-11-26T21:00:00Z",
                  "url": "https://gemba.example/#/incidents/00000000-0000-0000-0000-000000000003"
                },
                "machine": {
                  "id": "00000000-0000-0000-0000-000000000005",
                  "name": "pump-3",
                  "url": "https://gemba.example/#/machines/00000000-0000-0000-0000-000000000005"
                },
                "notice_id": "00000000-0000-0000-0000-000000000001",
                "reason": "opened",
                "severity": "high",
                "site": {
                  "id": "00000000-0000-0000-0000-000000000002",
                  "name": "North"
                },
                "to": {
                  "role": "operator",
                  "user": null
                }
              },
              "timestamp": "2026-11-26T21:00:00Z",
              "type": "incident.opened"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&value).unwrap());
        let many: Vec<Facts> = (0..60).map(|i| Facts { notice: Uuid::from_u128(i), ..facts.clone() }).collect();
        let digest = body(&Content::digest(many, Hold::Limit), "", at);
        let digest: Value = serde_json::from_str(&digest).unwrap();
        assert_eq!((&digest["data"]["count"], &digest["type"]), (&json!(60), &json!("digest")));
        assert_eq!(digest["data"]["items"].as_array().unwrap().len(), DIGEST_ITEMS_MAX);
        assert_eq!(digest["data"]["items"][49]["notice_id"], json!(Uuid::from_u128(59)), "the newest is there");
    }

    #[test]
    fn an_email() {
        let text = text(&Content::Notice(facts()), "https://gemba.example");
        assert_eq!(text.subject, "[HIGH] pump-3 (North)");
        expect![[r"
            An incident has begun.

            high: pump-3, North, since 2026-11-26 21:00 UTC

            - 2026-11-26 21:00 UTC pump-3 (high): It is loud
            - and 1 more
            - Open the incident: https://gemba.example/#/incidents/00000000-0000-0000-0000-000000000003

            Choose what you are told of: https://gemba.example/#/notifications
        "]]
        .assert_eq(&text.plain);
    }

    #[test]
    fn a_ticket() {
        let ticket = TicketFacts {
            id: Uuid::from_u128(6),
            number: 12,
            title: "Grease it".into(),
            due_at: Some("2026-12-01T06:00:00Z".parse().unwrap()),
        };
        let told = Facts {
            reason: Reason::Assigned,
            incident: None,
            ticket: Some(ticket),
            alarms: Vec::new(),
            alarm_count: 0,
            ..facts()
        };
        let text = text(&Content::Notice(told.clone()), "https://gemba.example");
        assert_eq!(text.subject, "[HIGH] #12 Grease it (North): assigned to you");
        assert!(text.plain.contains("#12 Grease it, North, due 2026-12-01 06:00 UTC"), "{}", text.plain);
        assert!(text.plain.contains("https://gemba.example/#/tickets/00000000-0000-0000-0000-000000000006"));
        let value: Value =
            serde_json::from_str(&body(&Content::Notice(told.clone()), "https://gemba.example", told.at)).unwrap();
        assert_eq!((&value["type"], &value["data"]["incident"]), (&json!("ticket.assigned"), &Value::Null));
        assert_eq!(
            (&value["data"]["ticket"]["number"], &value["data"]["machine"]["name"]),
            (&json!(12), &json!("pump-3"))
        );
        // What an older version kept is read.
        let mut kept = serde_json::to_value(facts()).unwrap();
        kept.as_object_mut().unwrap().remove("ticket");
        assert_eq!(serde_json::from_value::<Facts>(kept).unwrap(), facts());
    }

    #[test]
    fn names_stay_names() {
        let mut facts = facts();
        facts.site.name = "a\r\nBcc: x@example.com\r\n\r\n<script>".into();
        facts.alarms[0].message = "<img src=x onerror=\"alert('1')\">&\u{2028}".into();
        let text = text(&Content::Notice(facts), "https://gemba.example");
        assert_eq!(text.subject, "[HIGH] pump-3 (a  Bcc: x@example.com    <script>)");
        assert!(!text.html.contains("<script") && !text.html.contains("<img"), "{}", text.html);
        assert!(text.html.contains("&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;&amp; "), "{}", text.html);
        assert!(text.plain.lines().all(|line| !line.starts_with("Bcc")), "{}", text.plain);
    }
}
