//! Days and bands of sites, also where clocks change.

#![allow(clippy::float_cmp, reason = "quarters of small whole numbers are exact")]

use jiff::civil::date;

use super::*;
use crate::energy::tariff::Band;

fn terms(zone: &str) -> Terms {
    Terms { zone: TimeZone::get(zone).unwrap(), tariffs: Vec::new(), factors: Vec::new(), g_per_kwh_default: 473.0 }
}

fn at(text: &str) -> Timestamp {
    format!("{text}Z").parse().unwrap()
}

/// Starts of periods (UTC) and their lengths in hours.
fn periods(calendar: &Calendar) -> Vec<(String, f64)> {
    calendar.periods.iter().map(|period| (period.start.to_string(), period.hours())).collect()
}

#[test]
fn days_of_the_change_of_clocks_are_shorter_and_longer() {
    let berlin = terms("Europe/Berlin");
    for (from, to, lengths) in [
        ("2026-03-27T23:00", "2026-03-30T22:00", [24.0, 23.0, 24.0]),
        ("2026-10-23T22:00", "2026-10-26T23:00", [24.0, 25.0, 24.0]),
    ] {
        let calendar = Calendar::new(at(from), at(to), Some(Per::Day), &berlin);
        assert_eq!(periods(&calendar).iter().map(|(_, hours)| *hours).collect::<Vec<_>>(), lengths, "{from}");
    }
    // The hour that comes twice is two, the one that does not come is none.
    let twice = Calendar::new(at("2026-10-24T22:00"), at("2026-10-25T03:00"), Some(Per::Hour), &berlin);
    assert_eq!(twice.periods.len(), 5);
    assert!(twice.periods.iter().all(|period| period.hours() == 1.0));
    let months = Calendar::new(at("2026-03-15T05:00"), at("2026-04-02T00:00"), Some(Per::Month), &berlin);
    assert_eq!(
        periods(&months),
        [("2026-03-15T05:00:00Z".to_owned(), 16.0 * 24.0 + 17.0), ("2026-03-31T22:00:00Z".to_owned(), 26.0)]
    );
    assert_eq!(months.periods[1].date, date(2026, 4, 1));
}

#[test]
fn an_hour_is_cut_where_a_day_begins_within_it() {
    let india = terms("Asia/Kolkata");
    let calendar = Calendar::new(at("2026-01-01T18:00"), at("2026-01-01T20:00"), Some(Per::Day), &india);
    let hour = calendar.slices(at("2026-01-01T18:00"));
    assert_eq!(hour.iter().map(|slice| (slice.period, slice.share)).collect::<Vec<_>>(), [(0, 0.5), (1, 0.5)]);
    assert_eq!(calendar.slices(at("2026-01-01T19:00")).len(), 1);
    assert_eq!(calendar.slices(at("2026-01-01T20:00")), []);
    assert_eq!(calendar.slices(at("2026-01-01T17:00")), []);
    let nepal = Calendar::new(at("2026-01-01T18:00"), at("2026-01-01T19:00"), Some(Per::Day), &terms("Asia/Kathmandu"));
    let shares: Vec<f64> = nepal.slices(at("2026-01-01T18:00")).iter().map(|slice| slice.share).collect();
    assert_eq!(shares, [0.25, 0.75]);
}

#[test]
fn prices_go_by_the_clocks_of_the_site() {
    let night = Band { name: "night".into(), days: 127, from_min: 1_320, to_min: 375, price_micro: 100_000 };
    let mut berlin = terms("Europe/Berlin");
    berlin.tariffs = vec![
        Tariff::new(date(2026, 3, 1), "EUR".into(), 300_000, std::slice::from_ref(&night)),
        Tariff::new(date(2026, 5, 1), "CHF".into(), 200_000, &[]),
    ];
    let price = |hour: &str| {
        let from = at(hour);
        let calendar = Calendar::new(from, from + SignedDuration::from_hours(1), None, &berlin);
        let slices = calendar.slices(from).to_vec();
        assert_eq!(slices.iter().map(|slice| slice.share).sum::<f64>(), 1.0);
        (slices.len(), slices[0].price.map(|(currency, micro)| (calendar.currencies[currency].clone(), micro)))
    };
    let eur = |micro: f64| (1, Some(("EUR".to_owned(), micro)));
    assert_eq!(price("2026-02-28T12:00"), (1, None), "before the first tariff");
    // 06:00 to 07:00 by the clocks: a quarter is night. In winter that is five o'clock UTC, in summer four.
    assert_eq!(price("2026-03-28T05:00"), eur(250_000.0));
    assert_eq!(price("2026-03-29T05:00"), eur(300_000.0));
    assert_eq!(price("2026-03-29T04:00"), eur(250_000.0));
    assert_eq!(price("2026-03-28T21:00"), eur(100_000.0));
    assert_eq!(price("2026-03-29T20:00"), eur(100_000.0));
    assert_eq!(price("2026-03-29T19:00"), eur(300_000.0));
    assert_eq!(price("2026-04-30T21:00"), eur(100_000.0));
    assert_eq!(price("2026-04-30T22:00"), (1, Some(("CHF".to_owned(), 200_000.0))), "May has begun there");
}

#[test]
fn a_factor_holds_until_the_next() {
    let mut utc = terms("UTC");
    utc.factors = vec![
        Factor { valid_from: at("2026-01-01T01:00"), g_per_kwh: 100.0 },
        Factor { valid_from: at("2026-01-01T02:15"), g_per_kwh: 500.0 },
    ];
    let calendar = Calendar::new(at("2026-01-01T00:00"), at("2026-01-01T04:00"), None, &utc);
    let of = |hour: &str| calendar.slices(at(hour)).iter().map(|s| (s.g_per_kwh, s.by_default)).collect::<Vec<_>>();
    assert_eq!(of("2026-01-01T00:00"), [(473.0, true)]);
    assert_eq!(of("2026-01-01T01:00"), [(100.0, false)]);
    assert_eq!(of("2026-01-01T02:00"), [(400.0, false)]);
    assert_eq!(of("2026-01-01T03:00"), [(500.0, false)]);
}
