//! Files of the past.

use std::{io::Read as _, time::Duration};

use gemba_cloud::{clock, serve, users::Role};
use jiff::{SignedDuration, Timestamp};
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::RowAccessor as _,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Server;
use crate::history::make_rollups;

impl Server {
    async fn file(&self, query: &str, token: &str) -> Vec<u8> {
        let url = format!("http://{}/api/v1/export?{query}", self.address);
        let (agent, token) = (self.agent.clone(), format!("Bearer {token}"));
        tokio::task::spawn_blocking(move || {
            let mut response = agent.get(&url).header("authorization", token).call().unwrap();
            assert_eq!(response.status().as_u16(), 200, "{url}");
            let mut bytes = Vec::new();
            response.body_mut().as_reader().read_to_end(&mut bytes).unwrap();
            bytes
        })
        .await
        .unwrap()
    }
}

fn lines(bytes: &[u8]) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_reader(bytes);
    reader.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_what_is_stored_packed_or_not() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    server.rows(key, 0, 9_000).await;
    server.sql("UPDATE summaries SET means[1] = means[1] / 3, energy_wh = 0.1").await;
    make_rollups(&server.store).await;
    let range = format!("machine={machine}&from=2026-01-01T00:00:05Z&to=2026-01-02T00:00:00Z");
    let before = server.file(&range, &token).await;
    let rows = lines(&before);
    assert_eq!(rows.len(), 2 * 8_639);
    assert_eq!(rows[0][..5], ["2026-01-01T00:00:10Z", "pump-1", "flow", "bar", "10"]);
    for (n, row) in rows.iter().step_by(2).enumerate() {
        assert_eq!(row[7].parse::<f64>().unwrap().to_bits(), ((n as f64 + 1.0) / 3.0).to_bits(), "exactly");
        assert_eq!(row[10], "good");
    }
    assert_eq!(rows[1][5..10], ["", "", "", "0.0", "2.0"], "no figure is an empty cell");
    let table = server.file(&format!("{range}&format=parquet"), &token).await;
    let table = SerializedFileReader::new(bytes::Bytes::from(table)).unwrap();
    assert!(table.metadata().num_row_groups() > 2, "it came in parts");
    let table: Vec<_> = table.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(table.len(), rows.len());
    for (row, line) in table.iter().zip(&rows) {
        assert_eq!(row.get_timestamp_micros(0).unwrap(), line[0].parse::<Timestamp>().unwrap().as_microsecond());
        assert_eq!(row.get_string(2).unwrap(), &line[2]);
        assert_eq!(row.get_double(7).ok().map(f64::to_bits), line[7].parse::<f64>().ok().map(f64::to_bits));
    }
    let until = clock::now() + SignedDuration::from_hours(1);
    serve::history::pack(&server.store, until, 0, &CancellationToken::new()).await.unwrap();
    assert!(server.file(&range, &token).await == before, "packed, it is the same");

    let machine_rows = lines(&server.file(&format!("{range}&of=machine"), &token).await);
    assert_eq!(machine_rows.len(), 8_639);
    assert_eq!(machine_rows[0][2..], ["10000", "watching", "0.5", "", "running", "0.1"]);
    let hours = lines(&server.file(&format!("{range}&level=hours"), &token).await);
    assert_eq!((hours.len(), hours[0][4].as_str()), (2 * 23, "3600"), "whole hours that begin in the range");
    let days = lines(
        &server.file(&format!("machine={machine}&from=2026-01-01T00:00:00Z&level=days&of=machine"), &token).await,
    );
    assert_eq!(days.len(), 2);
    let running: f64 = days.iter().map(|day| day[9].parse::<f64>().unwrap()).sum();
    assert!((running - 90_000.0).abs() < 1e-9);
    let empty = server.file(&format!("machine={machine}&to=2025-01-01T00:00:00Z&format=parquet"), &token).await;
    assert_eq!(SerializedFileReader::new(bytes::Bytes::from(empty)).unwrap().metadata().num_row_groups(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_ends_the_export_and_what_is_wrong_is_told() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    server.rows(key, 0, 100_000).await;
    let range = format!("machine={machine}&from=2026-01-01T00:00:00Z");
    // More than may go on at a time: each reads a little and goes.
    for _ in 0..12 {
        let url = format!("http://{}/api/v1/export?{range}", server.address);
        let (agent, bearer) = (server.agent.clone(), format!("Bearer {token}"));
        let begun = std::time::Instant::now();
        loop {
            let (agent, url, bearer) = (agent.clone(), url.clone(), bearer.clone());
            let status = tokio::task::spawn_blocking(move || {
                let mut response = agent.get(&url).header("authorization", bearer).call().unwrap();
                let mut some = [0; 10];
                response.body_mut().as_reader().read_exact(&mut some).unwrap();
                response.status().as_u16()
            });
            // Those that went hold their turns until the server notices.
            match status.await.unwrap() {
                200 => break,
                503 => assert!(begun.elapsed() < Duration::from_secs(20), "turns come back"),
                other => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for (query, status) in [
        (String::new(), 422),
        (format!("{range}&level=weeks"), 422),
        (format!("{range}&format=xlsx"), 422),
        (format!("{range}&to=2026-01-01T00:00:00Z"), 422),
        (format!("machine={}", Uuid::now_v7()), 404),
    ] {
        let answer = server.call("GET", &format!("/api/v1/export?{query}"), Some(&token), None).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.body);
    }
}
