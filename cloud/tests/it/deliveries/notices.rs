//! Incidents of the plant's alarm, and notices of them.

use gemba_cloud::users::Role;
use uuid::Uuid;

use crate::api::{Plant, Server};

/// A new incident of the plant's alarm, and a notice of it for a role: their ids.
pub(crate) async fn notice(server: &Server, plant: &Plant, role: Role, severity: &str) -> (Uuid, Uuid) {
    let (notice, incident) = (Uuid::now_v7(), Uuid::now_v7());
    server
        .sql(&format!(
            "INSERT INTO incidents (id, organisation_id, site_id, gateway_id, machine_id, severity, opened_at, last_alarm_at)
             SELECT '{incident}', organisation_id, id, '{}', '{}', '{severity}', now(), now() FROM sites WHERE id = '{}';
             UPDATE alarms SET incident_id = '{incident}' WHERE id = '{}';
             INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, created_at)
             SELECT '{notice}', id, organisation_id, site_id, 'opened', '{severity}', '{role}', now()
             FROM incidents WHERE id = '{incident}'",
            plant.gateway, plant.machine, plant.site, plant.alarm
        ))
        .await;
    (notice, incident)
}
