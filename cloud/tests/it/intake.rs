//! What becomes of batches: once each, in order, or refused.

use gemba_cloud::{
    clock,
    intake::write::{Days, Outcome},
    store::Store,
};
use gemba_shared::{
    message::{Batch, Epoch},
    telemetry::{EventKind, Gap, GapReason, NormalShift, Record, SensorFault, SensorFaultKind, Timestamp},
};

use crate::{
    database,
    plant::{self, Bench, Gateway, ago, anomaly, bench, catalog, count, event, events, rows, summaries, summary},
};

async fn setup() -> (Store, Bench, Gateway) {
    let store = database::store().await;
    let bench = bench(&store);
    let gateway = plant::enrolled(&store, "g").await;
    (store, bench, gateway)
}

async fn take(bench: &Bench, gateway: &Gateway, batches: &[Batch]) -> Outcome {
    let batches: Vec<_> = batches.iter().map(|batch| gateway.incoming(batch.clone())).collect();
    bench.intake.write(&batches, &Days::default(), clock::now()).await.expect("it is stored")
}

fn through(outcome: &Outcome) -> u64 {
    outcome.stored.values().next().expect("a lane").through
}

/// A catalog and `n` summaries of machine `m`, numbered from 1.
fn stream(n: usize) -> Vec<Record> {
    let summaries = (0..n).map(|i| summary("m", ago(1_000_000 - 10 * i as i64), &[i as f64, -1.0]));
    std::iter::once(catalog("m", 1, &["a", "b"])).chain(summaries).collect()
}

#[tokio::test]
async fn a_batch_that_comes_again_changes_nothing_and_is_answered() {
    let (store, bench, gateway) = setup().await;
    let batch = summaries(1, stream(3));
    for again in [0, 4, 4] {
        let outcome = take(&bench, &gateway, std::slice::from_ref(&batch)).await;
        assert_eq!((through(&outcome), outcome.counts.again), (4, again));
    }
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 3);
    let row = rows(
        &store,
        "SELECT counts, mins, means, lasts, detector, mode, energy_wh, clock_trusted, score \
                            FROM summaries ORDER BY start DESC LIMIT 1",
    )
    .await;
    assert_eq!(row, "{10,10} {1,-2} {2,-1} {2,-1} 1 3 1.5 t 0.5");
    let machine = rows(&store, "SELECT name, detector, mode, health_percent, last_values FROM machines").await;
    assert_eq!(machine, "m watching running 97 {2,-1}");
}

#[tokio::test]
async fn two_intakes_that_get_the_same_batches_store_each_once() {
    let store = database::store().await;
    let (one, other) = (bench(&store), bench(&store));
    let gateway = plant::enrolled(&store, "g").await;
    let records = stream(300);
    let batches: Vec<Batch> =
        records.chunks(7).enumerate().map(|(i, chunk)| summaries(1 + 7 * i as u64, chunk.to_vec())).collect();
    let feed = async |bench: &Bench, size: usize| {
        // Like a gateway that sends again what was not taken.
        let mut settled = 0;
        while settled < records.len() as u64 {
            for group in batches.chunks(size) {
                settled = settled.max(through(&take(bench, &gateway, group).await));
            }
        }
    };
    tokio::join!(feed(&one, 1), feed(&other, 3), feed(&one, 5));
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 300);
    assert_eq!(count(&store, "SELECT through FROM lanes").await, 301);
}

#[tokio::test]
async fn what_has_a_hole_before_it_waits_and_what_will_never_come_is_a_gap() {
    let (store, bench, gateway) = setup().await;
    let records = stream(9);
    let part =
        |from: usize, to: usize, oldest| Batch { oldest, ..summaries(from as u64, records[from - 1..to].to_vec()) };

    let early = take(&bench, &gateway, &[part(4, 5, 1)]).await;
    assert_eq!((through(&early), early.counts.early), (0, 1));
    // Out of order in one group is no hole.
    let both = take(&bench, &gateway, &[part(3, 5, 1), part(1, 2, 1)]).await;
    assert_eq!((through(&both), both.counts.early), (5, 0));
    // 6 and 7 are lost at the gateway.
    let skipped = take(&bench, &gateway, &[part(8, 9, 8)]).await;
    assert_eq!((through(&skipped), skipped.counts.gaps), (9, 1));
    assert_eq!(rows(&store, "SELECT first, last, count, reason FROM gaps").await, "6 7 2 skipped");
    // The gateway says why; the late 6 and 7 change nothing.
    let why = Gap { first: 6, last: 7, count: 2, reason: GapReason::DiskFull };
    take(&bench, &gateway, &[summaries(10, vec![Record::Gap(why)]), part(6, 7, 1)]).await;
    assert_eq!(rows(&store, "SELECT first, last, count, reason FROM gaps").await, "6 7 2 disk_full");
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 6);
}

#[tokio::test]
async fn what_can_be_read_and_is_wrong_is_refused_and_the_lane_goes_on() {
    let (store, bench, gateway) = setup().await;
    let far = Timestamp(ago(0).0 + 5 * 86_400 * 1_000_000);
    let records = vec![
        catalog("m", 1, &["a", "b"]),
        summary("m", far, &[1.0]),
        summary("m", Timestamp(0), &[1.0]),
        summary("m", Timestamp(i64::MAX), &[1.0]),
        catalog("m", 2, &["b", "a"]),
        catalog("n", 1, &["a", "a"]),
        summary("m", ago(10), &[1.0, 2.0]),
    ];
    let batch = summaries(1, records);
    let outcome = take(&bench, &gateway, std::slice::from_ref(&batch)).await;
    assert_eq!(through(&outcome), 7);
    let expected =
        "2 time_out_of_bounds\n3 time_out_of_bounds\n4 time_out_of_bounds\n5 catalog_changed\n6 sensor_twice";
    assert_eq!(rows(&store, "SELECT number, reason FROM refusals ORDER BY number").await, expected);
    assert_eq!(outcome.refused.len(), 5);
    // The gateway asks again: it is told again.
    assert_eq!(take(&bench, &gateway, &[batch]).await.refused.len(), 5);
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 1);
    assert_eq!(count(&store, "SELECT count(*) FROM machines").await, 1);
}

#[tokio::test]
async fn another_outbox_may_number_sensors_otherwise() {
    let (store, bench, gateway) = setup().await;
    take(&bench, &gateway, &[summaries(1, vec![catalog("m", 1, &["a", "b"]), summary("m", ago(30), &[1.0, 2.0])])])
        .await;
    let mut wiped = summaries(1, vec![catalog("m", 1, &["c", "b"]), summary("m", ago(20), &[3.0, 2.5])]);
    wiped.seq.epoch = Epoch(7);
    take(&bench, &gateway, &[wiped]).await;
    assert_eq!(rows(&store, "SELECT position, name, unit FROM sensors ORDER BY 1").await, "0 a bar\n1 b bar\n2 c bar");
    assert_eq!(rows(&store, "SELECT lasts FROM summaries ORDER BY start").await, "{1,2}\n{NaN,2.5,3}");
}

#[tokio::test]
async fn an_anomaly_becomes_an_alarm_and_its_end_lets_it_return() {
    let (store, bench, gateway) = setup().await;
    let opened = ago(60);
    let updated = EventKind::AnomalyUpdated(anomaly(opened, 3.0, &[0.2, 0.8]));
    let mut number = 0;
    let mut send = async |records: Vec<Record>| {
        let batch = events(number + 1, records);
        number += batch.records.len() as u64;
        take(&bench, &gateway, &[batch]).await
    };
    send(vec![
        catalog("m", 1, &["a", "b"]),
        event("m", opened, EventKind::AnomalyOpened(anomaly(opened, 1.2, &[0.6, 0.4]))),
    ])
    .await;
    let alarms = "SELECT condition, state, severity, message, late FROM alarms ORDER BY raised_at, condition";
    assert_eq!(rows(&store, alarms).await, "anomaly unacknowledged low It does not behave as it did: a 60 %, b 40 % f");
    send(vec![event("m", ago(50), updated)]).await;
    assert_eq!(
        rows(&store, alarms).await,
        "anomaly unacknowledged high It does not behave as it did: b 80 %, a 20 % f"
    );
    send(vec![event("m", ago(40), EventKind::AnomalyClosed(anomaly(opened, 0.5, &[0.2, 0.8])))]).await;
    assert!(rows(&store, alarms).await.starts_with("anomaly returned_unacknowledged high"));
    assert_eq!(
        rows(&store, "SELECT closed_at IS NOT NULL, score, score_max, shares FROM anomalies").await,
        "t 0.5 3 {0.2,0.8}"
    );

    let shift = |active| NormalShift { since: ago(900), shares: vec![0.2, 0.8], active };
    send(vec![event("m", ago(34), EventKind::NormalShifted(shift(true)))]).await;
    let shifts = "SELECT state, message FROM alarms WHERE condition = 'normal_shifted'";
    let question = "It is steady at another level (b 80 %, a 20 %). New normal? Accept it, or have the cause removed";
    assert_eq!(rows(&store, shifts).await, format!("unacknowledged {question}"));
    send(vec![event("m", ago(32), EventKind::NormalShifted(shift(false)))]).await;
    assert_eq!(rows(&store, shifts).await, format!("returned_unacknowledged {question}"));

    let fault = |active| SensorFault { sensor: 1, kind: SensorFaultKind::Frozen, since: ago(45), active };
    send(vec![event("m", ago(30), EventKind::SensorFault(fault(true)))]).await;
    let faults = "SELECT condition, state, severity FROM alarms WHERE condition LIKE 'sensor%'";
    assert_eq!(rows(&store, faults).await, "sensor_fault:b unacknowledged low");
    send(vec![event("m", ago(20), EventKind::SensorFault(fault(false)))]).await;
    assert_eq!(rows(&store, faults).await, "sensor_fault:b returned_unacknowledged low");
}

#[tokio::test]
async fn late_news_is_history_unless_it_goes_on() {
    let (store, bench, gateway) = setup().await;
    let opened = ago(7_200);
    let alarms = "SELECT state, late FROM alarms ORDER BY raised_at";
    let opens = event("m", opened, EventKind::AnomalyOpened(anomaly(opened, 2.0, &[1.0])));
    take(&bench, &gateway, &[events(1, vec![opens])]).await;
    assert_eq!(rows(&store, alarms).await, "normal t");
    let still = |at| event("m", at, EventKind::AnomalyUpdated(anomaly(opened, 2.0, &[1.0])));
    take(&bench, &gateway, &[events(2, vec![still(ago(3_600))])]).await;
    assert_eq!(rows(&store, alarms).await, "normal t");
    take(&bench, &gateway, &[events(3, vec![still(ago(5))])]).await;
    assert_eq!(rows(&store, alarms).await, "normal t\nunacknowledged f");
}

#[tokio::test]
async fn a_silent_gateway_is_offline_and_comes_back() {
    let (store, _bench, gateway) = setup().await;
    let after = jiff::SignedDuration::from_secs(45);
    let now = clock::now();
    let at = |s: i64| now.checked_add(jiff::SignedDuration::from_secs(s)).expect("a time");
    assert!(store.watch_gateways(now, after).await.unwrap().is_empty(), "it was never heard");
    store.gateways_seen(&[gateway.id], now).await.unwrap();
    assert!(store.watch_gateways(at(40), after).await.unwrap().is_empty());
    let turned = store.watch_gateways(at(50), after).await.unwrap();
    assert!(turned.len() == 1 && turned[0].offline && turned[0].alarm.is_some());
    assert!(store.watch_gateways(at(51), after).await.unwrap().is_empty(), "it is told once");
    store.gateways_seen(&[gateway.id], at(60)).await.unwrap();
    let turned = store.watch_gateways(at(61), after).await.unwrap();
    assert!(turned.len() == 1 && !turned[0].offline);
    assert_eq!(rows(&store, "SELECT condition, state FROM alarms").await, "gateway_offline returned_unacknowledged");
}

#[tokio::test]
async fn a_state_of_the_future_gives_way_to_the_present() {
    let (store, bench, gateway) = setup().await;
    let ahead = vec![catalog("m", 1, &["a"]), summary("m", ago(-7_200), &[1.0])];
    take(&bench, &gateway, &[summaries(1, ahead)]).await;
    assert_eq!(rows(&store, "SELECT last_values FROM machines").await, "{1}");
    // The gateway's clock was set right: its machine is not to look frozen for two hours.
    take(&bench, &gateway, &[summaries(3, vec![summary("m", ago(20), &[2.0])])]).await;
    assert_eq!(rows(&store, "SELECT last_values FROM machines").await, "{2}");
    take(&bench, &gateway, &[summaries(4, vec![summary("m", ago(60), &[3.0])])]).await;
    assert_eq!(rows(&store, "SELECT last_values FROM machines").await, "{2}", "what is older does not");
}
