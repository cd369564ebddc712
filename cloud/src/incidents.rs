//! The rules of incidents: which alarms belong together, when people are told, and whom next when nobody takes it.
//!
//! What breaks a machine shows in several of its sensors, and what breaks a line shows on several machines within minutes. Told one
//! by one, such alarms are more than a person can take: EEMUA 191 and ISA-18.2 name one in ten minutes as what an operator can
//! handle over a shift, and two as the most. So people are told of the incident, and the alarms that follow are added to it
//! in silence, unless it gets graver.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{alarms::Severity, users::Role};

/// An alarm of a machine belongs to the incident that this machine had an alarm in within this time: a fault that comes and goes is
/// one fault.
pub const SAME_MACHINE_WITHIN: SignedDuration = SignedDuration::from_mins(30);
/// An alarm of another machine of the same area (or, where the machines are in none, of the same gateway) belongs to the incident
/// whose last alarm is no older than this: what one machine does to the next shows within minutes.
pub const SAME_LINE_WITHIN: SignedDuration = SignedDuration::from_mins(5);
/// Other machines join an incident only so long after it was opened: else a plant that is never quiet has one incident for ever.
pub const SAME_LINE_UNTIL: SignedDuration = SignedDuration::from_hours(1);
/// Alarms of one incident; more begin another.
pub const ALARMS_MAX: i64 = 200;
/// An incident whose alarms are all over closes by itself after this time without another.
pub const CLOSES_AFTER: SignedDuration = SAME_MACHINE_WITHIN;
/// What one role at one site is told of at most; more wait for their turn, the gravest first. Critical ones do not wait.
pub const PAGES_MAX: [(SignedDuration, usize); 2] =
    [(SignedDuration::from_mins(10), 2), (SignedDuration::from_hours(1), 6)];

/// Where an alarm comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    pub site: Uuid,
    pub gateway: Uuid,
    /// The line or hall that its machine stands in.
    pub area: Option<Uuid>,
    /// `None`: the gateway itself.
    pub machine: Option<Uuid>,
}

impl Place {
    fn same_machine(self, other: Self) -> bool {
        self.machine == other.machine && self.gateway == other.gateway
    }

    fn same_line(self, other: Self) -> bool {
        let same = match (self.area, other.area) {
            (Some(area), Some(other)) => area == other,
            _ => self.gateway == other.gateway,
        };
        self.site == other.site && same
    }
}

/// An incident that is open, as far as it matters to who might join.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    pub id: Uuid,
    pub opened_at: Timestamp,
    pub alarms: i64,
    /// Its machines, each with its last alarm, and whether one of its alarms is not over.
    pub places: Vec<(Place, Timestamp, bool)>,
}

/// The incident that an alarm announced `at` belongs to; `None`: a new one.
#[must_use]
pub fn belongs_to(place: Place, at: Timestamp, open: &[Open]) -> Option<Uuid> {
    let room = || open.iter().filter(|incident| incident.alarms < ALARMS_MAX);
    let same = room().filter(|incident| {
        incident.places.iter().any(|(other, last, standing)| {
            place.same_machine(*other) && (*standing || at.duration_since(*last) <= SAME_MACHINE_WITHIN)
        })
    });
    let latest = |incident: &&Open| incident.places.iter().map(|(_, last, _)| *last).max();
    if let Some(incident) = same.max_by_key(latest) {
        return Some(incident.id);
    }
    let near = room().filter(|incident| {
        at.duration_since(incident.opened_at) <= SAME_LINE_UNTIL
            && incident
                .places
                .iter()
                .any(|(other, last, _)| place.same_line(*other) && at.duration_since(*last) <= SAME_LINE_WITHIN)
    });
    near.max_by_key(latest).map(|incident| incident.id)
}

/// Whether a role at a site may be told of one more; `recent` are the times at which it was told.
#[must_use]
pub fn may_page(severity: Severity, recent: &[Timestamp], now: Timestamp) -> bool {
    severity == Severity::Critical
        || PAGES_MAX
            .iter()
            .all(|(within, most)| recent.iter().filter(|at| now.duration_since(**at) < *within).count() < *most)
}

/// Why somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoticeReason {
    Opened,
    SeverityRose,
    /// Nobody took it for too long.
    Escalated,
    Assigned,
}

impl NoticeReason {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::SeverityRose => "severity_rose",
            Self::Escalated => "escalated",
            Self::Assigned => "assigned",
        }
    }
}

/// A step of an escalation: an incident that nobody acknowledged or was given goes to this role after that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EscalationStep {
    /// Seconds since people were told of the incident.
    #[schema(minimum = 60, maximum = 604_800)]
    pub after_s: i32,
    pub role: Role,
    /// Less grave incidents are left out.
    pub severity_min: Severity,
}

/// Of an organisation that has said nothing: the supervisor after a quarter of an hour, the administrator after an hour.
pub const ESCALATION_DEFAULT: [EscalationStep; 2] = [
    EscalationStep { after_s: 900, role: Role::Supervisor, severity_min: Severity::Medium },
    EscalationStep { after_s: 3_600, role: Role::Admin, severity_min: Severity::High },
];
pub const ESCALATION_STEPS_MAX: usize = 5;

/// The steps that are due, by their place, of an incident that people were told of at `since` and that has taken `taken`.
#[must_use]
pub fn due(
    steps: &[EscalationStep],
    taken: usize,
    severity: Severity,
    since: Timestamp,
    now: Timestamp,
) -> Vec<(usize, EscalationStep)> {
    let waited = now.duration_since(since);
    let due = |step: &EscalationStep| {
        severity >= step.severity_min && waited >= SignedDuration::from_secs(i64::from(step.after_s))
    };
    steps.iter().copied().enumerate().skip(taken).filter(|(_, step)| due(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + s).unwrap()
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn place(gateway: u128, area: u128, machine: u128) -> Place {
        let some = |n: u128| (n > 0).then(|| id(n));
        Place { site: id(1), gateway: id(gateway), area: some(area), machine: some(machine) }
    }

    fn incident(n: u128, opened: i64, places: &[(Place, i64, bool)]) -> Open {
        let places = places.iter().map(|(place, last, standing)| (*place, at(*last), *standing)).collect();
        Open { id: id(n), opened_at: at(opened), alarms: 1, places }
    }

    #[test]
    fn alarms_that_belong_together() {
        let of_pump = incident(10, 0, &[(place(1, 0, 7), 0, false)]);
        let check = |who: Place, s: i64, open: &[Open], expected: Option<u128>, why: &str| {
            assert_eq!(belongs_to(who, at(s), open), expected.map(id), "{why}");
        };
        let pump = std::slice::from_ref(&of_pump);
        check(place(1, 0, 7), 1_800, pump, Some(10), "the same machine within half an hour");
        check(place(1, 0, 7), 1_801, pump, None, "half an hour later it is another incident");
        check(place(1, 0, 8), 300, pump, Some(10), "a neighbour within five minutes");
        check(place(1, 0, 8), 301, pump, None, "a neighbour later");
        check(place(2, 0, 8), 10, pump, None, "a machine of another gateway");
        check(place(1, 0, 0), 10, pump, Some(10), "the gateway itself");
        let standing = incident(10, 0, &[(place(1, 0, 7), 0, true)]);
        check(place(1, 0, 7), 90_000, &[standing], Some(10), "as long as the machine's alarm stands");

        let in_area = incident(11, 0, &[(place(1, 5, 7), 0, false)]);
        let area = std::slice::from_ref(&in_area);
        check(place(2, 5, 8), 10, area, Some(11), "the same line, seen by another gateway");
        check(place(1, 6, 8), 10, area, None, "another line, seen by the same gateway");

        let chain = incident(12, 0, &[(place(1, 0, 7), 3_590, false)]);
        check(place(1, 0, 8), 3_600, std::slice::from_ref(&chain), Some(12), "an incident that goes on for an hour");
        check(place(1, 0, 8), 3_601, std::slice::from_ref(&chain), None, "no neighbour joins after an hour");
        let full = Open { alarms: ALARMS_MAX, ..of_pump.clone() };
        check(place(1, 0, 7), 10, &[full], None, "one that is full");

        let neighbour = incident(13, 100, &[(place(1, 0, 9), 100, false)]);
        check(place(1, 0, 7), 110, &[of_pump, neighbour], Some(10), "its own machine before a newer neighbour");
    }

    #[test]
    fn people_are_told_twice_in_ten_minutes_and_six_times_in_an_hour_at_most() {
        let mut told = Vec::new();
        // An incident each minute, for three hours.
        for minute in 0..180 {
            let now = at(minute * 60);
            if may_page(Severity::High, &told, now) {
                told.push(now);
            }
            assert!(may_page(Severity::Critical, &told, now), "what is critical does not wait");
        }
        assert_eq!(told.len(), 3 * 6, "{told:?}");
        assert!(told.windows(3).all(|three| three[2].duration_since(three[0]) >= SignedDuration::from_mins(10)));
    }

    #[test]
    fn an_escalation_goes_step_by_step_and_leaves_out_what_is_not_grave() {
        let due = |taken, severity, s| {
            let due = due(&ESCALATION_DEFAULT, taken, severity, at(0), at(s));
            due.into_iter().map(|(place, step)| (place, step.role)).collect::<Vec<_>>()
        };
        assert_eq!(due(0, Severity::High, 899), []);
        assert_eq!(due(0, Severity::High, 900), [(0, Role::Supervisor)]);
        assert_eq!(due(1, Severity::High, 901), []);
        assert_eq!(due(1, Severity::High, 3_600), [(1, Role::Admin)]);
        assert_eq!(due(0, Severity::Critical, 9_999), [(0, Role::Supervisor), (1, Role::Admin)], "after an outage");
        assert_eq!(due(0, Severity::Low, 9_999), []);
        assert_eq!(due(0, Severity::Medium, 9_999), [(0, Role::Supervisor)]);
    }
}
