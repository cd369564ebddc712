//! The rule as tables: whom, over which channel, when.

use super::*;

const SITE: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const NOW: &str = "2026-11-26T23:00:00Z";
const LIMITS: Limits = Limits { emails: 20, webhook_calls: 100 };

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn notice(severity: Severity, audience: Audience) -> Notice {
    let reason = if matches!(audience, Audience::User(_)) { Reason::Assigned } else { Reason::Opened };
    Notice { site: SITE, reason, severity, audience }
}

fn person(n: u128, role: Role, choice: Choice) -> Person {
    let email = Some(format!("p{n}@example.com"));
    Person { user: Uuid::from_u128(n), role, email, choice, recent: Recent::default() }
}

fn quiet() -> Quiet {
    Quiet::new(127, 22 * 60, 6 * 60, "UTC").unwrap()
}

const MORNING: &str = "2026-11-27T06:00:00Z";

fn held(until: &str, hold: Hold) -> When {
    When::Held { until: until.parse().unwrap(), hold }
}

/// Who is e-mailed, by number, and when.
#[track_caller]
fn check(notice: &Notice, people: &[Person], expected: &[(u128, When)]) {
    let planned = plan(notice, people, &[], LIMITS, true, now());
    let found: Vec<(u128, When)> = planned.iter().map(|planned| (planned.to.as_u128(), planned.when)).collect();
    assert_eq!(found, expected);
    assert!(planned.iter().all(|planned| planned.channel == Channel::Email));
}

#[test]
fn a_role_is_its_people_or_those_above() {
    use Role::{Admin, Operator, Supervisor, Viewer};
    for (people, role, expected) in [
        (&[Viewer, Operator, Operator, Supervisor, Admin][..], Operator, &[1, 2][..]),
        (&[Viewer, Operator, Supervisor], Supervisor, &[2]),
        (&[Viewer, Supervisor, Admin], Operator, &[1]),
        (&[Viewer, Admin], Operator, &[1]),
        (&[Viewer, Operator], Supervisor, &[]),
        (&[], Operator, &[]),
    ] {
        let people: Vec<Person> =
            people.iter().enumerate().map(|(i, role)| person(i as u128, *role, Choice::default())).collect();
        let expected: Vec<(u128, When)> = expected.iter().map(|n| (*n, When::Now)).collect();
        check(&notice(Severity::Low, Audience::Role(role)), &people, &expected);
    }
    let people = [person(1, Viewer, Choice::default()), person(2, Operator, Choice::default())];
    check(&notice(Severity::Low, Audience::User(Uuid::from_u128(1))), &people, &[(1, When::Now)]);
    check(&notice(Severity::Low, Audience::User(Uuid::from_u128(9))), &people, &[]);
}

#[test]
fn choices() {
    let standard = Choice::default;
    let night = || Choice { quiet: Some(quiet()), ..standard() };
    for (choice, severity, expected) in [
        (standard(), Severity::Low, Some(When::Now)),
        (Choice { email: false, ..standard() }, Severity::Critical, None),
        (Choice { severity_min: Severity::High, ..standard() }, Severity::Medium, None),
        (Choice { severity_min: Severity::High, ..standard() }, Severity::High, Some(When::Now)),
        (Choice { sites: Some(vec![OTHER]), ..standard() }, Severity::High, None),
        (Choice { sites: Some(vec![OTHER, SITE]), ..standard() }, Severity::High, Some(When::Now)),
        (Choice { sites: Some(Vec::new()), ..standard() }, Severity::Critical, None),
        (night(), Severity::High, Some(held(MORNING, Hold::QuietHours))),
        (night(), Severity::Critical, Some(When::Now)),
        (Choice { critical_passes: false, ..night() }, Severity::Critical, Some(held(MORNING, Hold::QuietHours))),
    ] {
        let expected: Vec<(u128, When)> = expected.into_iter().map(|when| (1, when)).collect();
        let people = [person(1, Role::Operator, choice)];
        check(&notice(severity, Audience::Role(Role::Operator)), &people, &expected);
    }
    // What was assigned is told however grave it is, but not where somebody wants no e-mail, nor at night.
    for (choice, expected) in [
        (Choice { severity_min: Severity::Critical, ..standard() }, Some(When::Now)),
        (Choice { email: false, ..standard() }, None),
        (night(), Some(held(MORNING, Hold::QuietHours))),
    ] {
        let expected: Vec<(u128, When)> = expected.into_iter().map(|when| (1, when)).collect();
        let people = [person(1, Role::Operator, choice)];
        check(&notice(Severity::Low, Audience::User(Uuid::from_u128(1))), &people, &expected);
    }
}

#[test]
fn what_cannot_be_sent_says_so() {
    let mut nowhere = person(1, Role::Operator, Choice::default());
    nowhere.email = None;
    let high = notice(Severity::High, Audience::Role(Role::Operator));
    check(&high, &[nowhere], &[(1, When::Never(Skip::NoAddress))]);
    let planned = plan(&high, &[person(1, Role::Operator, Choice::default())], &[], LIMITS, false, now());
    assert_eq!(planned[0].when, When::Never(Skip::NoMailServer));
}

#[test]
fn a_flood_is_held() {
    let high = notice(Severity::Critical, Audience::Role(Role::Operator));
    let first = Some("2026-11-26T22:20:00Z".parse().unwrap());
    for (count, expected) in [
        (0, When::Now),
        (19, When::Now),
        (20, held("2026-11-26T23:20:00Z", Hold::Limit)),
        (500, held("2026-11-26T23:20:00Z", Hold::Limit)),
    ] {
        let mut one = person(1, Role::Operator, Choice::default());
        one.recent = Recent { count, first };
        check(&high, &[one], &[(1, expected)]);
    }
}

#[test]
fn webhooks() {
    let hook = |n: u128, severity_min, sites: Option<Vec<Uuid>>, count| Hook {
        id: Uuid::from_u128(n),
        name: format!("hook-{n}"),
        severity_min,
        sites,
        recent: Recent { count, first: Some(now()) },
    };
    let hooks = [
        hook(1, Severity::Low, None, 0),
        hook(2, Severity::Critical, None, 0),
        hook(3, Severity::High, Some(vec![SITE]), 99),
        hook(4, Severity::High, Some(vec![OTHER]), 0),
        hook(5, Severity::Low, None, 100),
    ];
    let planned = plan(&notice(Severity::High, Audience::Role(Role::Admin)), &[], &hooks, LIMITS, true, now());
    let found: Vec<(&str, When)> = planned.iter().map(|planned| (planned.recipient.as_str(), planned.when)).collect();
    let later = held("2026-11-27T00:00:00Z", Hold::Limit);
    assert_eq!(found, [("hook-1", When::Now), ("hook-3", When::Now), ("hook-5", later)]);
}
