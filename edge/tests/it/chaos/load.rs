//! Large payloads, and very many devices at once.

use std::{fmt::Write as _, time::Instant};

use super::{Fleet, PATIENT, Pace, Sent, Told, is_long, note};
use crate::{
    gateway::publish,
    plant::{INTERVAL_US, Plant, Setting, wait},
};

/// Payloads with all of a machine's sensors, as large as may be.
const BULK: &str = "[limits]\npayload_bytes_max = \"1MiB\"\n\
    [[sources]]\ntopic = \"bulk/{machine}\"\nformat = \"json\"\nvalues = \"/values\"\n";
const SENSORS: u32 = 64;
const KIB_10: usize = 10 * 1_024;
const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_are_taken_whole() {
    let told = Told::new("payloads");
    let plant = Plant::start_as(Setting { edge: &format!("{PATIENT}{BULK}"), ..Setting::default() }).await;
    let mut sent = Sent::default();
    #[expect(clippy::disallowed_methods, reason = "devices have a clock")]
    let begin_us = (jiff::Timestamp::now().as_microsecond() - 7_200_000_000).div_euclid(INTERVAL_US) * INTERVAL_US;
    let before = plant.edge.resident_mib();
    for (machine, bytes, count) in [("ten-kib", KIB_10, 500), ("one-mib", MIB, 10)] {
        let count = if is_long() { 10 * count } else { count };
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        for number in 0..count {
            let at_us = begin_us + i64::from(number) * 1_000_000;
            payloads.push(payload(at_us, number, bytes));
            for sensor in 0..SENSORS {
                note(&mut sent.values, machine, &format!("s{sensor}"), at_us, f64::from(number));
            }
        }
        sent.end_us = begin_us + i64::from(count) * 1_000_000;
        sent.count += u64::from(count * SENSORS);
        // The last one closes the intervals before it.
        payloads.push(payload(begin_us + 7_000_000_000, count, bytes));
        let topic = format!("bulk/{machine}");
        for some in payloads.chunks(10) {
            let messages: Vec<(&str, &[u8])> =
                some.iter().map(|payload| (topic.as_str(), payload.as_slice())).collect();
            publish(plant.mqtt, &messages).await;
        }
    }
    sent.end_us = begin_us + 6_500_000_000;
    let after = plant.edge.resident_mib();
    told.all_stored_once(&plant, &sent, &format!("edge resident {before:.0} MiB before, {after:.0} MiB after")).await;
    plant.stop();
}

/// Of exactly so many bytes.
fn payload(at_us: i64, number: u32, bytes: usize) -> Vec<u8> {
    let time = jiff::Timestamp::from_microsecond(at_us).unwrap();
    let mut text = format!("{{\"time\":\"{time}\",\"values\":{{");
    for sensor in 0..SENSORS {
        write!(text, "{}\"s{sensor}\":{number}", if sensor > 0 { "," } else { "" }).unwrap();
    }
    text.push_str("},\"padding\":\"");
    let rest = bytes - text.len() - 2;
    text.extend(std::iter::repeat_n('x', rest));
    text.push_str("\"}");
    text.into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_devices_come_back_at_once() {
    let told = Told::new("reconnect");
    let mut plant = Plant::start_as(Setting { edge: PATIENT, ..Setting::default() }).await;
    let every = std::time::Duration::from_secs(1);
    let pace = Pace { machines: 1_000, sensors: 1, step: 10 * every, every, is_kept: true };
    let fleet = Fleet::start(plant.mqtt, pace);
    let connected = |plant: &Plant| plant.edge_metric("gemba_edge_gate_connections") >= f64::from(pace.machines);
    wait("a thousand devices", || connected(&plant)).await;
    let mut took = Vec::new();
    for _ in 0..super::rounds(1, 10) {
        fleet.goes_on(1_000).await;
        plant.restart_edge().await;
        let begun = Instant::now();
        wait("a thousand devices again", || connected(&plant)).await;
        took.push(format!("{:.1}", begun.elapsed().as_secs_f64()));
    }
    fleet.goes_on(1_000).await;
    let resident = plant.edge.resident_mib();
    let sent = fleet.finish().await;
    let more = format!("all back after {} s; edge resident {resident:.0} MiB", took.join(", "));
    told.all_stored_once(&plant, &sent, &more).await;
    plant.stop();
}
