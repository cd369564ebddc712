//! How far each lane of each outbox is stored, what will never come, and what was refused.

use std::collections::BTreeMap;

use deadpool_postgres::Transaction;
use gemba_shared::lane::Stored;
use uuid::Uuid;

use super::{Store, StoreError};

/// A lane of an outbox. Their order is the order in which they are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    pub gateway: Uuid,
    /// The bits of the epoch.
    pub epoch: i64,
    pub lane: i16,
}

/// Numbers of a lane that will never come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapRow {
    pub lane: LaneKey,
    pub first: i64,
    pub last: i64,
    pub count: i64,
    pub reason: &'static str,
}

/// A record that was read and refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalRow {
    pub lane: LaneKey,
    pub number: i64,
    pub reason: String,
}

struct Columns {
    gateways: Vec<Uuid>,
    epochs: Vec<i64>,
    lanes: Vec<i16>,
}

fn columns(keys: impl Iterator<Item = LaneKey>) -> Columns {
    let mut columns = Columns { gateways: Vec::new(), epochs: Vec::new(), lanes: Vec::new() };
    for key in keys {
        columns.gateways.push(key.gateway);
        columns.epochs.push(key.epoch);
        columns.lanes.push(key.lane);
    }
    columns
}

/// Locks these lanes until the transaction's end, in a fixed order, and says how far each is stored.
pub async fn lock(
    transaction: &Transaction<'_>,
    keys: impl Iterator<Item = LaneKey>,
) -> Result<BTreeMap<LaneKey, Stored>, StoreError> {
    let mut keys: Vec<LaneKey> = keys.collect();
    keys.sort_unstable();
    keys.dedup();
    let Columns { gateways, epochs, lanes } = columns(keys.into_iter());
    let insert = transaction
        .prepare_cached(
            "INSERT INTO lanes (gateway_id, epoch, lane, through)
             SELECT *, 0 FROM unnest($1::uuid[], $2::bigint[], $3::smallint[]) AS wanted (gateway_id, epoch, lane)
             ORDER BY 1, 2, 3
             ON CONFLICT DO NOTHING",
        )
        .await?;
    transaction.execute(&insert, &[&gateways, &epochs, &lanes]).await?;
    let select = transaction
        .prepare_cached(
            "SELECT gateway_id, epoch, lane, lanes.through, lanes.tail
             FROM lanes JOIN unnest($1::uuid[], $2::bigint[], $3::smallint[]) AS wanted (gateway_id, epoch, lane)
                  USING (gateway_id, epoch, lane)
             ORDER BY 1, 2, 3
             FOR UPDATE OF lanes",
        )
        .await?;
    let rows = transaction.query(&select, &[&gateways, &epochs, &lanes]).await?;
    Ok(rows.iter().map(read).collect())
}

fn read(row: &tokio_postgres::Row) -> (LaneKey, Stored) {
    let key = LaneKey { gateway: row.get(0), epoch: row.get(1), lane: row.get(2) };
    let tail = row.get::<_, Option<i64>>(4).and_then(|tail| u32::try_from(tail).ok());
    (key, Stored { through: row.get::<_, i64>(3).cast_unsigned(), tail })
}

impl Store {
    /// How far the lanes of these gateways' latest outboxes are stored.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn lanes_of(&self, gateways: &[Uuid]) -> Result<BTreeMap<LaneKey, Stored>, StoreError> {
        let client = self.client().await?;
        let select = client
            .prepare_cached(
                "SELECT DISTINCT ON (gateway_id, lane) gateway_id, epoch, lane, through, tail FROM lanes
                 WHERE gateway_id = ANY($1) ORDER BY gateway_id, lane, updated_at DESC",
            )
            .await?;
        Ok(client.query(&select, &[&gateways]).await?.iter().map(read).collect())
    }
}

/// Sets how far locked lanes are stored.
pub async fn advance(transaction: &Transaction<'_>, stored: &BTreeMap<LaneKey, Stored>) -> Result<(), StoreError> {
    let Columns { gateways, epochs, lanes } = columns(stored.keys().copied());
    let numbers: Vec<i64> = stored.values().map(|stored| stored.through.cast_signed()).collect();
    let tails: Vec<Option<i64>> = stored.values().map(|stored| stored.tail.map(i64::from)).collect();
    let update = transaction
        .prepare_cached(
            "UPDATE lanes SET through = wanted.through, tail = wanted.tail, updated_at = now()
             FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::bigint[], $5::bigint[])
                  AS wanted (gateway_id, epoch, lane, through, tail)
             WHERE lanes.gateway_id = wanted.gateway_id AND lanes.epoch = wanted.epoch AND lanes.lane = wanted.lane
               AND lanes.through < wanted.through",
        )
        .await?;
    transaction.execute(&update, &[&gateways, &epochs, &lanes, &numbers, &tails]).await?;
    Ok(())
}

/// Writes a gap. What the gateway says of it replaces what was only noticed here.
pub async fn insert_gap(transaction: &Transaction<'_>, gap: &GapRow) -> Result<(), StoreError> {
    let GapRow { lane, first, last, count, reason } = gap;
    let noticed = transaction
        .prepare_cached(
            "DELETE FROM gaps WHERE gateway_id = $1 AND epoch = $2 AND lane = $3
                 AND first >= $4 AND last <= $5 AND reason = 'skipped'",
        )
        .await?;
    transaction.execute(&noticed, &[&lane.gateway, &lane.epoch, &lane.lane, first, last]).await?;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO gaps (gateway_id, epoch, lane, first, last, count, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .await?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&lane.gateway, &lane.epoch, &lane.lane, first, last, count, reason];
    transaction.execute(&insert, &values).await?;
    Ok(())
}

pub async fn insert_refusal(transaction: &Transaction<'_>, refusal: &RefusalRow) -> Result<(), StoreError> {
    let RefusalRow { lane, number, reason } = refusal;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO refusals (gateway_id, epoch, lane, number, reason) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    transaction.execute(&insert, &[&lane.gateway, &lane.epoch, &lane.lane, number, reason]).await?;
    Ok(())
}

/// What was refused of `first..=last`: the gateway asks again, so it may not have heard.
pub async fn refusals(
    transaction: &Transaction<'_>,
    lane: LaneKey,
    first: i64,
    last: i64,
) -> Result<Vec<RefusalRow>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT number, reason FROM refusals
             WHERE gateway_id = $1 AND epoch = $2 AND lane = $3 AND number BETWEEN $4 AND $5
             ORDER BY number",
        )
        .await?;
    let rows = transaction.query(&select, &[&lane.gateway, &lane.epoch, &lane.lane, &first, &last]).await?;
    Ok(rows.iter().map(|row| RefusalRow { lane, number: row.get(0), reason: row.get(1) }).collect())
}
