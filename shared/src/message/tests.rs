//! The wire, byte for byte. A diff here is a change of the contract: an old gateway must still be read, so
//! only additions at the end of an enum are harmless.

#![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use std::fmt::{Debug, Write as _};

use expect_test::{Expect, expect};
use serde::de::DeserializeOwned;

use super::*;
use crate::{
    ids::SensorId,
    telemetry::{
        Anomaly, Catalog, DetectorState, Event, EventKind, Gap, GapReason, Mode, NormalShift, Quality, RawWindow,
        Remaining, Sensor, SensorFault, SensorFaultKind, SensorSummary, Summary, Uncalibrated,
    },
};

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if i > 0 {
            text.push_str(if i % 32 == 0 { "\n" } else { "" });
        }
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the macro makes a value")]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, expected: Expect) {
    let bytes = postcard::to_stdvec(value).unwrap();
    expected.assert_eq(&hex(&bytes));
    assert_eq!(&postcard::from_bytes::<T>(&bytes).unwrap(), value);
}

fn machine() -> MachineId {
    MachineId::new("pump-3").unwrap()
}

fn sensor(name: &str, unit: Option<&str>) -> Sensor {
    Sensor { id: SensorId::new(name).unwrap(), unit: unit.map(Into::into) }
}

const AT: Timestamp = Timestamp(1_790_000_000_000_000);

fn verdict(detector: DetectorState) -> Verdict {
    Verdict { detector, score: Some(0.5), health_percent: Some(87.5), mode: Mode::Running, remaining: None }
}

fn seq() -> Seq {
    Seq { epoch: Epoch(0x0123_4567_89ab_cdef), lane: Lane::Summaries, number: 300 }
}

pub(crate) fn catalog() -> Catalog {
    Catalog {
        machine: machine(),
        revision: 2,
        step_ms: 1_000,
        interval_ms: 10_000,
        sensors: vec![sensor("current", Some("A")), sensor("state", None)],
        model: "baseline 1".into(),
    }
}

pub(crate) fn summary() -> Summary {
    let figures =
        SensorSummary { count: 10, min: 1.0, max: 2.0, mean: 1.5, sd: 0.25, last: 1.75, quality: Quality::Good };
    Summary {
        machine: machine(),
        start: AT,
        interval_ms: 10_000,
        catalog_revision: 2,
        sensors: vec![Some(figures), None, Some(SensorSummary { quality: Quality::Faulty, ..figures })],
        verdict: verdict(DetectorState::Watching),
        energy_wh: Some(12.5),
        clock: Clock::Trusted,
    }
}

fn anomaly() -> Anomaly {
    Anomaly {
        opened: AT,
        score: 1.5,
        score_max: 2.0,
        threshold: 9.25,
        shares: vec![0.75, 0.25],
        model: "tsq 1".into(),
        window: Some(RawWindow { step_ms: 1_000, first: AT, sensors: vec![1, 0], values: vec![1.0, 2.0, 3.0, 4.0] }),
    }
}

fn event(kind: EventKind) -> Event {
    Event { machine: machine(), at: AT, catalog_revision: 2, clock: Clock::Untrusted, kind }
}

fn batch(record: Record) -> Uplink {
    Uplink::Batch(Batch { seq: seq(), oldest: 299, before: Some(7), records: vec![record] })
}

/// One of each, for the frame's tests too.
pub(crate) fn uplinks() -> Vec<Uplink> {
    let fault = SensorFault { sensor: 1, kind: SensorFaultKind::Frozen, since: AT, active: true };
    vec![
        batch(Record::Catalog(catalog())),
        batch(Record::Summary(summary())),
        batch(Record::Event(event(EventKind::AnomalyOpened(anomaly())))),
        batch(Record::Event(event(EventKind::SensorFault(fault)))),
        batch(Record::Gap(Gap { first: 3, last: 9, count: 7, reason: GapReason::OverBudget })),
        batch(Record::Event(event(EventKind::NormalShifted(shift())))),
        Uplink::Live(Live { at: AT, clock: Clock::Trusted, machines: vec![live_machine()] }),
        Uplink::Status(status()),
        Uplink::CommandResult(CommandResult { id: 5, at: AT, outcome: Outcome::Failed("no such machine".into()) }),
        Uplink::Catalogs(Catalogs { epoch: seq().epoch, catalogs: vec![catalog()] }),
    ]
}

fn shift() -> NormalShift {
    NormalShift { since: AT, shares: vec![0.75, 0.25], active: true }
}

fn live_machine() -> LiveMachine {
    LiveMachine {
        machine: machine(),
        at: AT,
        catalog_revision: 2,
        values: vec![Some(1.5), None],
        verdict: Verdict { score: None, health_percent: None, ..verdict(DetectorState::Calibrating { percent: 40 }) },
    }
}

fn status() -> Status {
    Status {
        at: AT,
        clock: Clock::Trusted,
        version: "0.1.0".into(),
        uptime_s: 3_600,
        machines: 4,
        backlog_records: 17,
        backlog_bytes: 70_000,
        drops: vec![Count { reason: "topic".into(), count: 3 }],
    }
}

#[test]
fn batch_of_a_catalog() {
    check(
        &batch(Record::Catalog(catalog())),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701000670756d702d3302e807904e02
            0763757272656e74010141057374617465000a626173656c696e652031"#]],
    );
}

#[test]
fn batch_of_a_summary() {
    check(
        &batch(Record::Summary(summary())),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701010670756d702d338080afa2dbff
            ad06904e0203010a000000000000f03f0000000000000040000000000000f83f
            000000000000d03f000000000000fc3f0000010a000000000000f03f00000000
            00000040000000000000f83f000000000000d03f000000000000fc3f03010100
            00003f010000af42030001000000000000294000"#]],
    );
}

#[test]
fn batch_of_events() {
    check(
        &batch(Record::Event(event(EventKind::AnomalyOpened(anomaly())))),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701020670756d702d338080afa2dbff
            ad060201008080afa2dbffad060000c03f0000004000001441020000403f0000
            803e05747371203101e8078080afa2dbffad06020100040000803f0000004000
            00404000008040"#]],
    );
    check(
        &batch(Record::Event(event(EventKind::AnomalyUpdated(anomaly())))),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701020670756d702d338080afa2dbff
            ad060201018080afa2dbffad060000c03f0000004000001441020000403f0000
            803e05747371203101e8078080afa2dbffad06020100040000803f0000004000
            00404000008040"#]],
    );
    let closed = Anomaly { window: None, ..anomaly() };
    check(
        &batch(Record::Event(event(EventKind::AnomalyClosed(closed)))),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701020670756d702d338080afa2dbff
            ad060201028080afa2dbffad060000c03f0000004000001441020000403f0000
            803e05747371203100"#]],
    );
    let fault = SensorFault { sensor: 1, kind: SensorFaultKind::Drifting, since: AT, active: false };
    check(
        &batch(Record::Event(event(EventKind::SensorFault(fault)))),
        expect![[r#"
            00ef9bafcdf8acd1910101ac02ab02010701020670756d702d338080afa2dbff
            ad0602010301038080afa2dbffad0600"#]],
    );
}

#[test]
fn batch_of_a_shifted_normal() {
    check(
        &batch(Record::Event(event(EventKind::NormalShifted(shift())))),
        expect![[r#"
        00ef9bafcdf8acd1910101ac02ab02010701020670756d702d338080afa2dbff
        ad060201048080afa2dbffad06020000403f0000803e01"#]],
    );
}

#[test]
fn what_is_left_of_a_life() {
    check(&Remaining { likely_s: 3_600.0, low_s: 1_800.0, high_s: 7_200.0 }, expect!["000061450000e1440000e145"]);
}

#[test]
fn batch_of_a_gap() {
    check(
        &batch(Record::Gap(Gap { first: 3, last: 9, count: 7, reason: GapReason::Refused })),
        expect!["00ef9bafcdf8acd1910101ac02ab020107010303090703"],
    );
}

#[test]
fn other_uplinks() {
    let live = Live { at: AT, clock: Clock::Trusted, machines: vec![live_machine()] };
    check(
        &Uplink::Live(live),
        expect![[r#"
            018080afa2dbffad0600010670756d702d338080afa2dbffad06020201000000
            000000f83f00002800000300"#]],
    );
    check(&Uplink::Status(status()), expect!["028080afa2dbffad060005302e312e30901c0411f0a2040105746f70696303"]);
    check(
        &Uplink::CommandResult(CommandResult { id: 5, at: AT, outcome: Outcome::Done }),
        expect!["03058080afa2dbffad0600"],
    );
}

#[test]
fn downlinks() {
    let receipt = Receipt { epoch: seq().epoch, lane: Lane::Events, through: 300, now: AT, tail: None };
    check(&Downlink::Receipt(receipt), expect!["00ef9bafcdf8acd1910100ac028080afa2dbffad0600"]);
    let receipt = Receipt { tail: Some(300), ..receipt };
    check(&Downlink::Receipt(receipt), expect!["00ef9bafcdf8acd1910100ac028080afa2dbffad0601ac02"]);
    check(
        &Downlink::Refused(Refused { seq: seq(), reason: "no such lane".into() }),
        expect!["01ef9bafcdf8acd1910101ac020c6e6f2073756368206c616e65"],
    );
    let desired = Desired { config: None, model: Some(Artefact { name: "tsq".into(), sha256: [0xa5; 32] }) };
    check(
        &Downlink::Desired(desired),
        expect![[r#"
        03000103747371a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5
        a5a5a5a5a5a5a5"#]],
    );
}

#[test]
fn a_catalog_is_asked_for_and_sent() {
    let wanted = CatalogWanted { seq: seq(), machine: machine() };
    check(&Downlink::CatalogWanted(wanted), expect!["04ef9bafcdf8acd1910101ac020670756d702d33"]);
    let catalogs = Catalogs { epoch: seq().epoch, catalogs: vec![catalog()] };
    check(
        &Uplink::Catalogs(catalogs),
        expect![[r#"
            04ef9bafcdf8acd19101010670756d702d3302e807904e020763757272656e74
            010141057374617465000a626173656c696e652031"#]],
    );
}

#[test]
fn a_record_is_told_from_another_by_its_digest() {
    let digest = Record::Summary(summary()).digest();
    assert_eq!(digest, Record::Summary(summary()).digest());
    assert_ne!(digest, Record::Summary(Summary { interval_ms: 60_000, ..summary() }).digest());
    assert_ne!(digest, Record::Catalog(catalog()).digest());
}

#[test]
fn commands() {
    let command = |kind| Downlink::Command(Command { id: 5, expires: AT, kind });
    check(&command(CommandKind::Recalibrate { machine: machine() }), expect!["02058080afa2dbffad06000670756d702d33"]);
    check(
        &command(CommandKind::AcceptNewNormal { machine: machine() }),
        expect!["02058080afa2dbffad06010670756d702d33"],
    );
    let label = CommandKind::LabelAnomaly { machine: machine(), opened: AT, real: true };
    check(&command(label), expect!["02058080afa2dbffad06020670756d702d338080afa2dbffad0601"]);
    check(
        &command(CommandKind::OutOfService { machine: machine(), out: true }),
        expect!["02058080afa2dbffad06030670756d702d3301"],
    );
    check(&command(CommandKind::Reload), expect!["02058080afa2dbffad0604"]);
    check(&command(CommandKind::SendDiagnostics), expect!["02058080afa2dbffad0605"]);
}

/// The number of each variant of the small enums: it must never change.
#[test]
fn small_enums() {
    check(&Lane::ALL, expect!["0001"]);
    check(&[Clock::Trusted, Clock::Untrusted], expect!["0001"]);
    check(&[Quality::Good, Quality::Held, Quality::Missing, Quality::Faulty], expect!["00010203"]);
    check(&[Mode::Unknown, Mode::Off, Mode::Idle, Mode::Running], expect!["00010203"]);
    let states = [
        DetectorState::Calibrating { percent: 9 },
        DetectorState::Watching,
        DetectorState::Anomalous,
        DetectorState::Blind,
        DetectorState::Uncalibrated { reason: Uncalibrated::TooFew { constant: 3, missing: 1, of: 8 } },
        DetectorState::Uncalibrated { reason: Uncalibrated::Unsteady { sensors: 5, of: 8 } },
    ];
    check(&states, expect!["0009010203040003010804010508"]);
    let kinds =
        [SensorFaultKind::Frozen, SensorFaultKind::Missing, SensorFaultKind::Saturated, SensorFaultKind::Drifting];
    check(&kinds, expect!["00010203"]);
    let reasons =
        [GapReason::OverBudget, GapReason::DiskFull, GapReason::Damaged, GapReason::Refused, GapReason::Thinned];
    check(&reasons, expect!["0001020304"]);
    let outcomes =
        [Outcome::Done, Outcome::Failed("x".into()), Outcome::Expired, Outcome::Unknown, Outcome::Told("y".into())];
    check(&outcomes, expect!["000101780203040179"]);
}
