//! The past kept in order: partitions made ahead, what is over packed, what is too old dropped.
//!
//! Every step is a transaction of its own, and any number of replicas may do it: who comes second finds nothing to do.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    history::{day, midnight, pack_before, window_end},
    store::{Store, StoreError, compaction::Packed},
};

/// Partitions are made this many days ahead.
const DAYS_AHEAD: i64 = 3;
const EVERY: Duration = Duration::from_mins(5);
/// Intervals of a window for which it is packed before its day is over.
const WINDOW_INTERVALS_MIN: i64 = 60;
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

/// Works until `cancel`. A window is packed when it has been over for `pack_after`, and its day once more when nothing has come for
/// it for as long.
pub async fn keep(store: Store, pack_after: SignedDuration, cancel: CancellationToken) {
    loop {
        let now = clock::now();
        let before = pack_before(now, pack_after);
        tell("cannot make the partitions of the next days", days_ahead(&store).await);
        tell("cannot pack the days that are over", pack(&store, before, REST, &cancel).await);
        tell("cannot pack the hours that are over", pack_windows(&store, before, REST, &cancel).await);
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
        let (from, to) = range(day);
        let machines = store.machines_to_pack(from, to).await?;
        if !machines.is_empty() {
            store.make_blocks(day).await?;
        }
        for key in machines {
            intervals += pack_all(store, key, (from, to), rest, cancel).await?;
        }
        if cancel.is_cancelled() {
            return Ok(());
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

/// Packs the windows before `before` of its day and of the one before, where they have more than a few intervals. Nobody may take what
/// comes for them for not late.
///
/// # Errors
/// If the database cannot be reached, or a block is damaged.
pub async fn pack_windows(
    store: &Store,
    before: Timestamp,
    rest: u32,
    cancel: &CancellationToken,
) -> Result<(), StoreError> {
    let last = day(before);
    for day in [last.yesterday().unwrap_or(last), last] {
        let (from, to) = range(day);
        let to = to.min(before);
        for key in store.machines_to_pack(from, to).await? {
            let windows = store.windows_to_pack(key, (from, to), WINDOW_INTERVALS_MIN).await?;
            if !windows.is_empty() {
                store.make_blocks(day).await?;
            }
            for window in windows {
                pack_all(store, key, (window, window_end(window).min(to)), rest, cancel).await?;
            }
            if cancel.is_cancelled() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Packs what a machine has in a range; how many intervals.
async fn pack_all(
    store: &Store,
    key: i32,
    (from, to): (Timestamp, Timestamp),
    rest: u32,
    cancel: &CancellationToken,
) -> Result<u64, StoreError> {
    let mut intervals = 0;
    while !cancel.is_cancelled() {
        let begun = Instant::now();
        let packed = store.pack_some(key, from, to).await?;
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(begun.elapsed() * rest) => {}
        }
        match packed {
            Packed::Intervals(more) => intervals += more,
            Packed::Done | Packed::Busy => break,
        }
    }
    Ok(intervals)
}

fn range(day: Date) -> (Timestamp, Timestamp) {
    (midnight(day), day.tomorrow().map_or(Timestamp::MAX, midnight))
}
