//! The schema's history: forward only, each step in a transaction of its own, all of them under one lock.
//!
//! A step that has been released is never edited: its checksum is kept in the database, and a difference is an
//! error. A database that is ahead of this program is refused: an old program would write what the new one no
//! longer understands.

use sha2::{Digest as _, Sha256};

use super::{
    Store, StoreError,
    scoped::{RoleError, ensure_role},
};

/// Number, name and text of every step, in their order.
const STEPS: [(i32, &str, &str); 13] = [
    (1, "initial", include_str!("../../migrations/0001_initial.sql")),
    (2, "commands", include_str!("../../migrations/0002_commands.sql")),
    (3, "detection", include_str!("../../migrations/0003_detection.sql")),
    (4, "access", include_str!("../../migrations/0004_access.sql")),
    (5, "alarms", include_str!("../../migrations/0005_alarms.sql")),
    (6, "notifications", include_str!("../../migrations/0006_notifications.sql")),
    (7, "history", include_str!("../../migrations/0007_history.sql")),
    (8, "policies", include_str!("../../migrations/0008_policies.sql")),
    (9, "tickets", include_str!("../../migrations/0009_tickets.sql")),
    (10, "plans", include_str!("../../migrations/0010_plans.sql")),
    (11, "energy", include_str!("../../migrations/0011_energy.sql")),
    (12, "lists", include_str!("../../migrations/0012_lists.sql")),
    (13, "reading", include_str!("../../migrations/0013_reading.sql")),
];
const VERSION_MIN: i32 = 15;
/// Of the advisory lock that keeps two programs from migrating at once ("gemba" as a number).
const LOCK: i64 = 0x67_65_6d_62_61;

/// Why the schema is not what this program needs.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the database is PostgreSQL {0}: {VERSION_MIN} or newer is needed (views with the rights of who reads them)"
    )]
    TooOld(i32),
    #[error(transparent)]
    Role(#[from] RoleError),
    #[error("migration {number} ({name}) failed and changed nothing")]
    Step { number: i32, name: &'static str, source: tokio_postgres::Error },
    #[error(
        "the database has migration {found}, this program knows {known}: it was used by a newer gemba-cloud; \
         install that version or newer"
    )]
    Newer { found: i32, known: i32 },
    #[error("migration {number} was applied in another form than this program has: it is not this program's database")]
    Different { number: i32 },
    #[error("the database lacks migration {0}: run `gemba-cloud migrate`")]
    Behind(i32),
}

/// What a database that is to be replaced has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// People, gateways or machines.
    pub has_data: bool,
    /// Connections of other gemba-clouds.
    pub others: i64,
}

impl Store {
    /// Brings the schema up to date and says which steps that took.
    ///
    /// # Errors
    /// If the database cannot be reached, is ahead of this program, or a step fails (it then changed nothing).
    pub async fn migrate(&self) -> Result<Vec<i32>, MigrateError> {
        let mut client = self.client().await?;
        // The lock waits for another migrating program, and a step may take long: neither is a fault.
        client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await.map_err(StoreError::from)?;
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(StoreError::from)?;
        let done = apply(&mut client).await;
        // This connection carries settings of its own and the lock: it is not given back to the pool.
        drop(deadpool_postgres::Object::take(client));
        done
    }

    /// Whether the database has data, and who else uses it.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn occupancy(&self) -> Result<Occupancy, StoreError> {
        let client = self.client().await?;
        let mut has_data = false;
        for table in ["users", "gateways", "machines"] {
            let known = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("public.{table}")]).await?;
            if known.try_get(0)? {
                let some = format!("SELECT EXISTS (SELECT FROM {table})");
                has_data |= client.query_one(&some, &[]).await?.try_get::<_, bool>(0)?;
            }
        }
        // Our own connections end with us; those of other programs have another process behind them.
        let others = client
            .query_one(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                    AND application_name = 'gemba-cloud' AND backend_type = 'client backend'",
                &[],
            )
            .await?;
        Ok(Occupancy { has_data, others: others.try_get(0)? })
    }

    /// Whether the schema is exactly what this program needs.
    ///
    /// # Errors
    /// If it is not, or the database cannot be reached.
    pub async fn check_schema(&self) -> Result<(), MigrateError> {
        let client = self.client().await?;
        let known = client
            .query_one("SELECT to_regclass('public.migrations') IS NOT NULL", &[])
            .await
            .map_err(StoreError::from)?
            .get::<_, bool>(0);
        let applied = if known { applied(&client).await? } else { Vec::new() };
        match STEPS.get(check(&applied)?) {
            Some((number, ..)) => Err(MigrateError::Behind(*number)),
            None => Ok(()),
        }
    }
}

async fn apply(client: &mut deadpool_postgres::Client) -> Result<Vec<i32>, MigrateError> {
    let version = "SELECT current_setting('server_version_num')::integer / 10000";
    let version: i32 = client.query_one(version, &[]).await.map_err(StoreError::from)?.get(0);
    if version < VERSION_MIN {
        return Err(MigrateError::TooOld(version));
    }
    ensure_role(client).await?;
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS migrations (
                 number integer PRIMARY KEY,
                 name text NOT NULL,
                 sha256 bytea NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT now()
             )",
        )
        .await
        .map_err(StoreError::from)?;
    let from = check(&applied(client).await?)?;
    let mut done = Vec::new();
    for (number, name, text) in &STEPS[from..] {
        let step = |source| MigrateError::Step { number: *number, name, source };
        let transaction = client.transaction().await.map_err(step)?;
        transaction.batch_execute(text).await.map_err(step)?;
        transaction
            .execute(
                "INSERT INTO migrations (number, name, sha256) VALUES ($1, $2, $3)",
                &[number, name, &checksum(text)],
            )
            .await
            .map_err(step)?;
        transaction.commit().await.map_err(step)?;
        tracing::info!(number, name, "applied a migration");
        done.push(*number);
    }
    Ok(done)
}

async fn applied(client: &tokio_postgres::Client) -> Result<Vec<(i32, Vec<u8>)>, StoreError> {
    let rows = client.query("SELECT number, sha256 FROM migrations ORDER BY number", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// How many of the steps are there.
fn check(applied: &[(i32, Vec<u8>)]) -> Result<usize, MigrateError> {
    let known = STEPS.last().map_or(0, |(number, ..)| *number);
    for (i, (number, sha256)) in applied.iter().enumerate() {
        let Some((expected, _, text)) = STEPS.get(i) else {
            return Err(MigrateError::Newer { found: applied.last().map_or(0, |(number, _)| *number), known });
        };
        if number != expected || *sha256 != checksum(text) {
            return Err(MigrateError::Different { number: *number });
        }
    }
    Ok(applied.len())
}

fn checksum(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_told_from_another_and_from_the_future() {
        let ours: Vec<_> = STEPS.iter().map(|(number, _, text)| (*number, checksum(text))).collect();
        assert_eq!(check(&[]).unwrap(), 0);
        assert_eq!(check(&ours).unwrap(), STEPS.len());
        let mut newer = ours.clone();
        newer.push((STEPS.len() as i32 + 1, vec![0; 32]));
        assert!(matches!(check(&newer), Err(MigrateError::Newer { .. })));
        let mut edited = ours;
        edited[0].1[0] ^= 1;
        assert!(matches!(check(&edited), Err(MigrateError::Different { number: 1 })));
    }

    #[test]
    fn steps_count_up_from_one() {
        for (i, (number, ..)) in STEPS.iter().enumerate() {
            assert_eq!(*number as usize, i + 1);
        }
    }
}
