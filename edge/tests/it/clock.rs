//! A gateway whose clock nobody sets.

use std::{fs, time::Duration};

use gemba_shared::telemetry::Timestamp;

use crate::{
    gateway::publish,
    plant::{Plant, Setting, count, stored, wait},
};

const YEAR_US: i64 = 365 * 24 * 3_600 * 1_000_000;

#[expect(clippy::disallowed_methods, reason = "the test has a clock")]
fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_microsecond())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_the_time_was_known_is_dated_right_when_the_cloud_tells_it() {
    let periods = "[defaults]\nstep = \"500ms\"\ninterval = \"2s\"\nlateness = \"500ms\"\nhold = \"2s\"\n";
    let mut plant = Plant::start_as(Setting { edge: periods, ..Setting::default() }).await;
    let config = plant.directory.path().join("edge.toml");
    let text = fs::read_to_string(&config).unwrap().replace("[gateway]\n", "[gateway]\nclock = \"cloud\"\n");
    fs::write(&config, text).unwrap();

    // No cloud to ask, and all that is known is a time that is years from now.
    plant.link.cut();
    plant.edge.kill();
    let wrong = now().plus_us(5 * YEAR_US);
    fs::write(plant.directory.path().join("edge/clock"), format!("latest {}\n", wrong.0)).unwrap();
    plant.revive_edge();
    plant.edge_ready().await;
    let begin = now();
    let mut sent = 0;
    for round in 0..12_u32 {
        let value = format!("{round}");
        let messages: Vec<(&str, &[u8])> = vec![("plant/press-1/force", value.as_bytes()); 25];
        publish(plant.mqtt, &messages).await;
        sent += 25;
        tokio::time::sleep(Duration::from_millis(400)).await;
        if round == 6 {
            plant.restart_edge().await;
        }
    }
    let end = now();

    plant.link.mend();
    wait("the intervals to be closed", || plant.edge_metric("gemba_edge_open_intervals") == 0.0).await;
    wait("everything to be sent", || plant.edge_metric("gemba_edge_backlog_records") == 0.0).await;
    let database = plant.database().await;
    let rows = stored(&database).await;
    assert_eq!(rows.values().map(|figures| figures.count).sum::<i32>(), sent);
    for (cell, figures) in &rows {
        let right = begin.0 - 3_000_000..end.0 + 3_000_000;
        assert!(right.contains(&cell.start_us), "{cell:?} {figures:?}, measured {begin:?} to {end:?}");
    }
    assert_eq!(count(&database, "SELECT count(*) FROM summaries WHERE NOT clock_trusted").await, 0);
    assert_eq!(count(&database, "SELECT count(*) FROM refusals").await, 0);
    plant.stop();
}
