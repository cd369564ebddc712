//! The past kept in order: partitions made ahead, days that are over packed, what is too old dropped.
//!
//! Every step is a transaction of its own, and any number of replicas may do it: who comes second finds nothing to do.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    history::day,
    store::{Store, StoreError, compaction::Packed},
};

/// Partitions are made this many days ahead.
const DAYS_AHEAD: i64 = 3;
const EVERY: Duration = Duration::from_mins(10);
/// Intake takes a day for over when its clock says so; clocks of replicas differ by less than this.
const PACK_AFTER_MIN: SignedDuration = SignedDuration::from_mins(10);
/// The daemon's packing rests so many times as long as it works: intake comes first.
pub const REST: u32 = 2;

/// Makes the partitions of today and the next days.
///
/// # Errors
/// If the database cannot be reached or refuses.
pub async fn days_ahead(store: &Store) -> Result<(), StoreError> {
    let now = clock::now();
    let at = |ahead| day(now.saturating_add(SignedDuration::from_hours(24 * ahead)).unwrap_or(now));
    store.make_days(&(0..=DAYS_AHEAD).map(at).collect::<BTreeSet<_>>()).await
}

/// Works until `cancel`. A day is packed when it has been over, and nothing has come for it, for `pack_after`.
pub async fn keep(store: Store, pack_after: SignedDuration, cancel: CancellationToken) {
    loop {
        let now = clock::now();
        let until = now.saturating_sub(pack_after.max(PACK_AFTER_MIN)).unwrap_or(now);
        tell("cannot make the partitions of the next days", days_ahead(&store).await);
        tell("cannot pack the days that are over", pack(&store, until, REST, &cancel).await);
        match store.drop_old(now).await {
            Ok(dropped) if dropped == crate::store::retention::Dropped::default() => {}
            Ok(dropped) => {
                tracing::info!(days = dropped.days, months = dropped.months, "dropped what is no longer kept");
            }
            Err(error) => tell("cannot drop what is no longer kept", Err(error)),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn tell(what: &'static str, result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "{what}; trying again later");
    }
}

/// Packs the days that were over before `until`, and nothing came for since; rests `rest` times as long as it works.
///
/// # Errors
/// If the database cannot be reached, or a block is damaged.
pub async fn pack(store: &Store, until: Timestamp, rest: u32, cancel: &CancellationToken) -> Result<(), StoreError> {
    for day in store.days_to_pack(until).await? {
        let (begun, mut intervals) = (Instant::now(), 0);
        let machines = store.machines_to_pack(day).await?;
        if !machines.is_empty() {
            store.make_blocks(day).await?;
        }
        for key in machines {
            loop {
                let begun = Instant::now();
                let packed = store.pack_some(key, day).await?;
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(begun.elapsed() * rest) => {}
                }
                match packed {
                    Packed::Intervals(more) => intervals += more,
                    Packed::Done | Packed::Busy => break,
                }
            }
        }
        match store.drop_packed(day).await {
            Ok(true) => tracing::info!(%day, intervals, s = begun.elapsed().as_secs(), "packed a day"),
            Ok(false) => tracing::debug!(%day, intervals, "packed a part of a day"),
            // Somebody uses the table; the next round drops it.
            Err(error) if error.is_transient() => tracing::debug!(%day, %error, "cannot drop an empty partition yet"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
