//! What stands at a site: where an object that a path names is to be found, for whoever asks who may touch it.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use uuid::Uuid;

use super::StoreError;

/// What stands at a site and has an id in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    Site,
    Area,
    Gateway,
    Machine,
    Anomaly,
    Alarm,
    AlarmHold,
    AlarmRule,
    Incident,
    Delivery,
    Ticket,
    Plan,
    Tariff,
    CarbonFactor,
    Baseline,
}

impl Object {
    /// Its name for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Area => "area",
            Self::Gateway => "gateway",
            Self::Machine => "machine",
            Self::Anomaly => "anomaly",
            Self::Alarm => "alarm",
            Self::AlarmHold => "hold",
            Self::AlarmRule => "rule",
            Self::Incident => "incident",
            Self::Delivery => "delivery",
            Self::Ticket => "ticket",
            Self::Plan => "plan",
            Self::Tariff => "tariff",
            Self::CarbonFactor => "carbon factor",
            Self::Baseline => "baseline",
        }
    }

    /// Rows of (id, site) of the objects `$1`.
    const fn sites(self) -> &'static str {
        match self {
            Self::Site => "SELECT id, id FROM sites WHERE id = ANY($1)",
            Self::Area => "SELECT id, site_id FROM areas WHERE id = ANY($1)",
            Self::Gateway => "SELECT id, site_id FROM gateways WHERE id = ANY($1)",
            Self::Machine => "SELECT id, site_id FROM machines WHERE id = ANY($1)",
            Self::Anomaly => {
                "SELECT a.id, m.site_id FROM anomalies a JOIN machines m ON m.id = a.machine_id WHERE a.id = ANY($1)"
            }
            Self::Alarm => "SELECT id, site_id FROM alarms WHERE id = ANY($1)",
            Self::AlarmHold => "SELECT id, site_id FROM alarm_holds WHERE id = ANY($1)",
            Self::AlarmRule => "SELECT id, site_id FROM alarm_rules WHERE id = ANY($1)",
            Self::Incident => "SELECT id, site_id FROM incidents WHERE id = ANY($1)",
            Self::Tariff => "SELECT id, site_id FROM tariffs WHERE id = ANY($1)",
            Self::CarbonFactor => "SELECT id, site_id FROM carbon_factors WHERE id = ANY($1)",
            Self::Baseline => "SELECT id, site_id FROM baselines WHERE id = ANY($1)",
            // A test belongs to no site.
            Self::Delivery => "SELECT id, site_id FROM deliveries WHERE id = ANY($1) AND site_id IS NOT NULL",
            Self::Ticket => "SELECT id, site_id FROM tickets WHERE id = ANY($1)",
            Self::Plan => "SELECT id, site_id FROM plans WHERE id = ANY($1)",
        }
    }
}

/// At which site each of these objects stands, as far as the transaction sees them.
///
/// # Errors
/// If the database is away.
pub async fn sites(
    transaction: &Transaction<'_>,
    object: Object,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Uuid>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let select = transaction.prepare_cached(object.sites()).await?;
    let rows = transaction.query(&select, &[&ids]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}
