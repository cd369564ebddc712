//! What a frame carries, and everything that it refuses.

#![expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use expect_test::expect;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    ids::MachineId,
    message::{Batch, Command, CommandKind, Epoch, Lane, Receipt, Refused, Seq, tests::hex, tests::uplinks},
    telemetry::{
        Clock, DetectorState, Gap, GapReason, Mode, Quality, Record, SensorSummary, Summary, Timestamp, Verdict,
    },
};

const GATEWAY: GatewayId = GatewayId::from_bytes([7; 16]);

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn sealed() -> Vec<u8> {
    seal(&receipt(), GATEWAY, &key()).unwrap()
}

fn receipt() -> Downlink {
    Downlink::Receipt(Receipt {
        epoch: Epoch(9),
        lane: Lane::Events,
        through: 300,
        now: Timestamp(1_000),
        tail: Some(7),
    })
}

fn open_down(frame: &[u8]) -> Result<Downlink, FrameError> {
    open(frame, GATEWAY, &key().verifying_key())
}

/// A frame with any header and body, with a right checksum and signature.
fn forge(header: impl FnOnce(&mut Vec<u8>), body: &[u8]) -> Vec<u8> {
    let mut frame = sealed()[..HEADER_BYTES].to_vec();
    frame[22..26].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    header(&mut frame);
    frame.extend_from_slice(body);
    frame.extend_from_slice(&crc32c::crc32c(&frame).to_le_bytes());
    let signature = key().sign(&to_sign(&frame)).to_bytes();
    frame.extend_from_slice(&signature);
    frame
}

#[test]
fn golden_bytes() {
    expect![[r#"
        474d420100010707070707070707070707070707070709000000000900ac02d0
        0f01079cc6e9d9682048408a3d14d79d7c990019e3ea1f70b76af1cdec55d4d0
        9c9d46f752d36caba48c9ab7a3588b191aafa4a596b1a621b046400c8c5ecb3e
        82066cd1811b01"#]]
    .assert_eq(&hex(&sealed()));
}

#[test]
fn every_message_comes_back() {
    for message in uplinks() {
        let frame = seal(&message, GATEWAY, &key()).unwrap();
        assert_eq!(open::<Uplink>(&frame, GATEWAY, &key().verifying_key()), Ok(message));
    }
    assert_eq!(open_down(&sealed()), Ok(receipt()));
}

#[test]
fn what_is_not_for_us_is_refused_with_its_reason() {
    let verifying = key().verifying_key();
    let other = SigningKey::from_bytes(&[4; 32]).verifying_key();
    let frame = sealed();
    let body = &postcard::to_stdvec(&receipt()).unwrap()[..];
    let check = |result: Result<Downlink, FrameError>, expected| assert_eq!(result, Err(expected));

    check(open(&frame, GatewayId::from_bytes([8; 16]), &verifying), FrameError::Gateway);
    check(open(&frame, GATEWAY, &other), FrameError::Signature);
    assert_eq!(open::<Uplink>(&frame, GATEWAY, &verifying), Err(FrameError::Direction));
    check(open_down(&forge(|header| header[0] = b'X', body)), FrameError::Magic);
    check(open_down(&forge(|header| header[3] = 2, body)), FrameError::Version(2));
    check(open_down(&forge(|header| header[4] = 2, body)), FrameError::Flags);
    check(open_down(&forge(|header| header[22] += 1, body)), FrameError::Truncated);
    check(open_down(&forge(|header| header[22] -= 1, body)), FrameError::Length);
    check(open_down(&forge(|header| header[22..26].fill(0xff), body)), FrameError::Truncated);
    check(open_down(&forge(|_| {}, &[0xff; 4])), FrameError::Body);
    check(open_down(&forge(|_| {}, &[body, &[0]].concat())), FrameError::Body);
    check(open_down(&vec![0; FRAME_BYTES_MAX + 1]), FrameError::TooLarge);
    check(open_down(&[]), FrameError::Truncated);
}

#[test]
fn decompression_is_bounded() {
    let compressed = |header: &mut Vec<u8>| header[4] = COMPRESSED;
    // It says that it is small, and is 64 MiB of zeros.
    let bomb = lz4_flex::block::compress(&vec![0; 64 << 20]);
    let body = [&100_u32.to_le_bytes()[..], &bomb].concat();
    assert_eq!(open_down(&forge(compressed, &body)), Err(FrameError::Compression));
    // It says that it is 4 GiB.
    let body = [&u32::MAX.to_le_bytes()[..], &bomb[..100]].concat();
    assert_eq!(open_down(&forge(compressed, &body)), Err(FrameError::TooLarge));
    assert_eq!(open_down(&forge(compressed, &[1])), Err(FrameError::Compression));
}

#[test]
fn a_message_that_is_too_large_is_not_sealed() {
    let reason = "x".repeat(BODY_BYTES_MAX);
    let seq = Seq { epoch: Epoch(1), lane: Lane::Events, number: 1 };
    let result = seal(&Downlink::Refused(Refused { seq, reason }), GATEWAY, &key());
    assert!(matches!(result, Err(SealError::TooLarge(n)) if n > BODY_BYTES_MAX));
}

#[test]
fn any_flipped_bit_is_refused() {
    let frame = sealed();
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(open_down(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn any_truncation_is_refused() {
    let frame = sealed();
    for length in 0..frame.len() {
        assert!(open_down(&frame[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(open_down(&[&frame[..], &[0]].concat()), Err(FrameError::Length));
}

prop_compose! {
    fn sensor_summaries()(
        count in any::<u32>(),
        figures in any::<[f64; 5]>().prop_filter("NaN is not equal to itself", |f| f.iter().all(|x| !x.is_nan())),
    ) -> SensorSummary {
        let [min, max, mean, sd, last] = figures;
        SensorSummary { count, min, max, mean, sd, last, quality: Quality::Held }
    }
}

prop_compose! {
    fn summaries()(
        machine in "[a-z0-9][a-z0-9._-]{0,63}",
        start in any::<i64>(),
        sensors in vec(proptest::option::of(sensor_summaries()), 0..40),
        score in proptest::option::of(-1e9_f32..1e9),
    ) -> Record {
        Record::Summary(Summary {
            machine: MachineId::new(&machine).unwrap(),
            start: Timestamp(start),
            interval_ms: 10_000,
            catalog_revision: 1,
            sensors,
            verdict: Verdict { detector: DetectorState::Anomalous, score, health_percent: None, mode: Mode::Idle, remaining: None },
            energy_wh: None,
            clock: Clock::Untrusted,
        })
    }
}

fn records() -> impl Strategy<Value = Record> {
    let gaps = (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(first, last, count)| Record::Gap(Gap { first, last, count, reason: GapReason::Damaged }));
    prop_oneof![summaries(), gaps]
}

/// Summaries as a plant makes them: values of a few decimals, means and deviations of any digits.
#[test]
fn a_batch_of_summaries_is_made_smaller() {
    let noise = |n: u32| f64::from(n.wrapping_mul(2_654_435_761) >> 20) / 4_096.0;
    let sensor = |n: u32| {
        let min = 20.0 + (noise(n) * 100.0).round() / 100.0;
        let (max, last) = (min + 0.75, min + 0.25);
        let (mean, sd) = (min + noise(n + 1), noise(n + 2) / 3.0);
        Some(SensorSummary { count: 10, min, max, mean, sd, last, quality: Quality::Good })
    };
    let summary = |n: u32| {
        Record::Summary(Summary {
            machine: MachineId::new(&format!("pump-{}", n % 25)).unwrap(),
            start: Timestamp(1_790_000_000_000_000 + i64::from(n / 25) * 10_000_000),
            interval_ms: 10_000,
            catalog_revision: 1,
            sensors: (0..8).map(|k| sensor(8 * n + k)).collect(),
            verdict: Verdict {
                detector: DetectorState::Watching,
                score: Some(noise(n) as f32),
                health_percent: Some(97.5),
                mode: Mode::Running,
                remaining: None,
            },
            energy_wh: None,
            clock: Clock::Trusted,
        })
    };
    let records: Vec<Record> = (0..170).map(summary).collect();
    let message = Uplink::Batch(Batch {
        seq: Seq { epoch: Epoch(1), lane: Lane::Summaries, number: 1 },
        oldest: 1,
        before: None,
        records,
    });
    let plain = postcard::to_stdvec(&message).unwrap().len();
    let frame = seal(&message, GATEWAY, &key()).unwrap().len();
    println!("170 summaries of 8 sensors: {plain} bytes, {frame} in a frame ({:.2})", frame as f64 / plain as f64);
    assert!(frame < plain * 9 / 10, "{frame} of {plain}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn generated_batches_come_back(epoch: u64, number: u64, oldest: u64, records in vec(records(), 0..40)) {
        let seq = Seq { epoch: Epoch(epoch), lane: Lane::Summaries, number };
        let message = Uplink::Batch(Batch { seq, oldest, before: None, records });
        let frame = seal(&message, GATEWAY, &key()).unwrap();
        prop_assert_eq!(open::<Uplink>(&frame, GATEWAY, &key().verifying_key()), Ok(message));
    }

    #[test]
    fn generated_commands_come_back(id: u64, expires: i64, opened: i64, real: bool) {
        let kind = CommandKind::LabelAnomaly {
            machine: MachineId::new("m").unwrap(), opened: Timestamp(opened), real,
        };
        let message = Downlink::Command(Command { id, expires: Timestamp(expires), kind });
        let frame = seal(&message, GATEWAY, &key()).unwrap();
        prop_assert_eq!(open_down(&frame), Ok(message));
    }

    #[test]
    fn noise_is_refused(noise in vec(any::<u8>(), 0..400)) {
        prop_assert!(open_down(&noise).is_err());
    }

    /// Noise that got past the checksum and the signature: only a broken sender makes it.
    #[test]
    fn signed_noise_is_an_error_or_a_message(flags in 0_u8..2, noise in vec(any::<u8>(), 0..400)) {
        let _either: Result<Uplink, FrameError> =
            open(&forge(|header| { header[4] = flags; header[5] = 0; }, &noise), GATEWAY, &key().verifying_key());
    }
}
