//! Gateways as they are added, enrolled, revoked and replaced.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{Store, StoreError};

/// A gateway as its owner lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: Uuid,
    pub site: String,
    pub name: String,
    pub state: String,
    pub last_seen_at: Option<Timestamp>,
    pub machines: i64,
}

/// Why a gateway was not added or changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no gateway {0:?} (`gemba-cloud gateway list` names them)")]
    NoGateway(String),
    #[error("several sites have a gateway {0:?}: name it by its id")]
    Ambiguous(String),
    #[error("there is no site {0:?}")]
    NoSite(String),
    #[error("the site has a gateway {0:?} already")]
    NameTaken(String),
    #[error("the gateway {0:?} is revoked: add or replace it instead")]
    Revoked(String),
}

impl From<tokio_postgres::Error> for ChangeError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A token's row.
#[derive(Debug, Clone, Copy)]
pub struct NewToken {
    pub sha256: [u8; 32],
    pub now: Timestamp,
    pub valid_for: SignedDuration,
}

/// A gateway to be added.
#[derive(Debug, Clone, Copy)]
pub struct NewGateway<'a> {
    pub name: &'a str,
    pub site: &'a str,
    /// Where it finds the broker, if not where all do.
    pub mqtt_url: Option<&'a str>,
    /// The one whose machines (and site) it takes over when it is enrolled.
    pub replaces: Option<Uuid>,
}

/// A gateway that has just been enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub gateway: Uuid,
    pub mqtt_url: Option<String>,
    /// The one whose machines it took over.
    pub replaced: Option<Uuid>,
}

impl Store {
    /// All gateways, by site and name.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn list_gateways(&self) -> Result<Vec<Listed>, StoreError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "SELECT gateways.id, sites.name, gateways.name, state, last_seen_at,
                        (SELECT count(*) FROM machines WHERE gateway_id = gateways.id)
                 FROM gateways JOIN sites ON sites.id = site_id ORDER BY 2, 3",
                &[],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| Listed {
            id: row.get(0),
            site: row.get(1),
            name: row.get(2),
            state: row.get(3),
            last_seen_at: row.get(4),
            machines: row.get(5),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Adds a gateway that a token will enrol.
    ///
    /// # Errors
    /// If the name is taken, the site is unknown, or the database cannot be reached.
    pub async fn add_gateway(&self, new: NewGateway<'_>, token: NewToken) -> Result<Uuid, ChangeError> {
        let NewGateway { name, site, mqtt_url, replaces } = new;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let site_id: Option<Uuid> = match replaces {
            Some(old) => transaction.query_opt("SELECT site_id FROM gateways WHERE id = $1", &[&old]).await?,
            None => transaction.query_opt("SELECT id FROM sites WHERE name = $1", &[&site]).await?,
        }
        .map(|row| row.get(0));
        let site_id = site_id.ok_or_else(|| ChangeError::NoSite(site.to_owned()))?;
        let id = Uuid::now_v7();
        let added = transaction
            .execute(
                "INSERT INTO gateways (id, site_id, name, state, mqtt_url, replaces) VALUES ($1, $2, $3, 'pending', $4, $5)
                 ON CONFLICT (site_id, name) DO NOTHING",
                &[&id, &site_id, &name, &mqtt_url, &replaces],
            )
            .await?;
        if added == 0 {
            return Err(ChangeError::NameTaken(name.to_owned()));
        }
        insert_token(&transaction, id, token).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// A gateway by its name or id.
    ///
    /// # Errors
    /// If there is none or more than one, or the database cannot be reached.
    pub async fn find_gateway(&self, name: &str) -> Result<Uuid, ChangeError> {
        let client = self.client().await?;
        let rows = client.query("SELECT id FROM gateways WHERE name = $1 OR id::text = $1", &[&name]).await?;
        match rows.as_slice() {
            [] => Err(ChangeError::NoGateway(name.to_owned())),
            [row] => Ok(row.get(0)),
            _ => Err(ChangeError::Ambiguous(name.to_owned())),
        }
    }

    /// A new token for a gateway that is to make a new key; older tokens of it are void.
    ///
    /// # Errors
    /// If it is revoked, or the database cannot be reached.
    pub async fn rekey_gateway(&self, gateway: Uuid, token: NewToken) -> Result<(), ChangeError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let row =
            transaction.query_opt("SELECT name, state FROM gateways WHERE id = $1 FOR UPDATE", &[&gateway]).await?;
        let Some(row) = row else { return Err(ChangeError::NoGateway(gateway.to_string())) };
        if row.get::<_, &str>(1) == "revoked" {
            return Err(ChangeError::Revoked(row.get(0)));
        }
        insert_token(&transaction, gateway, token).await?;
        Ok(transaction.commit().await?)
    }

    /// Takes nothing from this gateway any more; whether it was not revoked before.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn revoke_gateway(&self, gateway: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let revoked = revoke(&transaction, gateway, now).await?;
        transaction.commit().await?;
        Ok(revoked)
    }

    /// Uses a token up, and enrols its gateway with this key; `None` when there is no such token, or no longer.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn enrol(
        &self,
        token_sha256: &[u8; 32],
        public_key: &[u8; 32],
        password_sha256: &[u8; 32],
        now: Timestamp,
    ) -> Result<Option<Enrolled>, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let used = transaction
            .query_opt(
                "UPDATE enrolment_tokens SET used_at = $2
                 WHERE hash = $1 AND used_at IS NULL AND expires_at > $2
                 RETURNING gateway_id",
                &[&token_sha256.as_slice(), &now],
            )
            .await?;
        let Some(used) = used else { return Ok(None) };
        let gateway: Uuid = used.get(0);
        let row = transaction
            .query_opt(
                "UPDATE gateways SET state = 'enrolled', public_key = $2, mqtt_password_hash = $3, enrolled_at = $4
                 WHERE id = $1 AND state <> 'revoked'
                 RETURNING replaces, mqtt_url",
                &[&gateway, &public_key.as_slice(), &password_sha256.as_slice(), &now],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let replaced: Option<Uuid> = row.get(0);
        if let Some(old) = replaced {
            transaction.execute("UPDATE machines SET gateway_id = $2 WHERE gateway_id = $1", &[&old, &gateway]).await?;
            // Alarms of its machines go with them; its own end with it.
            transaction
                .execute(
                    "UPDATE alarms SET gateway_id = $2 WHERE gateway_id = $1 AND machine_id IS NOT NULL",
                    &[&old, &gateway],
                )
                .await?;
            transaction.execute("UPDATE gateways SET replaces = NULL WHERE id = $1", &[&gateway]).await?;
            revoke(&transaction, old, now).await?;
        }
        transaction.commit().await?;
        Ok(Some(Enrolled { gateway, mqtt_url: row.get(1), replaced }))
    }
}

async fn insert_token(
    transaction: &deadpool_postgres::Transaction<'_>,
    gateway: Uuid,
    token: NewToken,
) -> Result<(), StoreError> {
    let NewToken { sha256, now, valid_for } = token;
    let expires_at = now.saturating_add(valid_for).unwrap_or(now);
    transaction
        .execute(
            "UPDATE enrolment_tokens SET used_at = $2 WHERE gateway_id = $1 AND used_at IS NULL",
            &[&gateway, &now],
        )
        .await?;
    transaction
        .execute(
            "INSERT INTO enrolment_tokens (hash, gateway_id, created_at, expires_at) VALUES ($1, $2, $3, $4)",
            &[&sha256.as_slice(), &gateway, &now, &expires_at],
        )
        .await?;
    Ok(())
}

async fn revoke(
    transaction: &deadpool_postgres::Transaction<'_>,
    gateway: Uuid,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = transaction
        .execute(
            "UPDATE gateways SET state = 'revoked', revoked_at = $2, mqtt_password_hash = NULL
             WHERE id = $1 AND state <> 'revoked'",
            &[&gateway, &now],
        )
        .await?;
    transaction
        .execute(
            "UPDATE enrolment_tokens SET used_at = $2 WHERE gateway_id = $1 AND used_at IS NULL",
            &[&gateway, &now],
        )
        .await?;
    Ok(changed > 0)
}
