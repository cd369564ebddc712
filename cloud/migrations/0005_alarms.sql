-- Alarms after ISA-18.2: what keeps one from being announced stands beside the state of its condition.

-- How much the plant depends on it: an alarm is a step less grave, as it is, or a step graver.
ALTER TABLE machines ADD COLUMN criticality text NOT NULL DEFAULT 'medium'
    CHECK (criticality IN ('low', 'medium', 'high'));

-- Shelved by a person for a time, suppressed by design (planned maintenance), or out of service. It is of a condition, not
-- of one alarm: what comes again while it lasts is held as well.
CREATE TABLE alarm_holds (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    -- The machine, or for a gateway's own alarms the gateway.
    subject_id uuid NOT NULL,
    -- NULL: all conditions.
    condition text,
    kind text NOT NULL CHECK (kind IN ('shelved', 'suppressed', 'out_of_service')),
    reason text NOT NULL,
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    since timestamptz NOT NULL,
    -- NULL: until somebody ends it.
    until timestamptz,
    -- What its beginning does to alarms was done.
    begun boolean NOT NULL DEFAULT false,
    ended_at timestamptz,
    -- NULL: it ended by itself.
    ended_by uuid REFERENCES users,
    CHECK (until IS NOT NULL OR kind = 'out_of_service'),
    CHECK (until > since)
);

-- A planned window may stand beside others; of the rest there is one at a time.
CREATE UNIQUE INDEX alarm_holds_one ON alarm_holds (subject_id, coalesce(condition, ''), kind)
    WHERE ended_at IS NULL AND kind <> 'suppressed';
CREATE INDEX alarm_holds_open ON alarm_holds (subject_id) WHERE ended_at IS NULL;
CREATE INDEX alarm_holds_site ON alarm_holds (site_id, id DESC);

-- What belongs together: it is announced as one.
CREATE TABLE incidents (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    gateway_id uuid NOT NULL REFERENCES gateways,
    -- Of its first alarm; NULL where that is the gateway's own.
    machine_id uuid REFERENCES machines,
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    opened_at timestamptz NOT NULL,
    last_alarm_at timestamptz NOT NULL,
    closed_at timestamptz,
    -- NULL: it closed by itself.
    closed_by uuid REFERENCES users,
    assigned_to uuid REFERENCES users,
    assigned_at timestamptz,
    -- As grave as it was when it was last announced; NULL: it waits for its turn.
    paged_severity text CHECK (paged_severity IN ('low', 'medium', 'high', 'critical')),
    -- Steps of the escalation that were taken.
    escalated smallint NOT NULL DEFAULT 0
);

CREATE INDEX incidents_open ON incidents (site_id) WHERE closed_at IS NULL;
CREATE INDEX incidents_opened_at ON incidents (opened_at DESC, id DESC);

CREATE TABLE incident_comments (
    id uuid PRIMARY KEY,
    incident_id uuid NOT NULL REFERENCES incidents,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    author_id uuid NOT NULL REFERENCES users,
    written_at timestamptz NOT NULL,
    text text NOT NULL
);

CREATE INDEX incident_comments_incident ON incident_comments (incident_id, id);

-- Who is to be told of what; what delivers them reads them here.
CREATE TABLE notices (
    id uuid PRIMARY KEY,
    incident_id uuid NOT NULL REFERENCES incidents,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    reason text NOT NULL CHECK (reason IN ('opened', 'severity_rose', 'escalated', 'assigned')),
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    -- Everybody with this role at the site, or one user.
    role text CHECK (role IN ('admin', 'supervisor', 'operator', 'viewer')),
    user_id uuid REFERENCES users,
    created_at timestamptz NOT NULL,
    CHECK ((role IS NULL) <> (user_id IS NULL))
);

CREATE INDEX notices_incident ON notices (incident_id, id);
CREATE INDEX notices_recent ON notices (site_id, created_at);

-- After how long an incident that nobody takes goes to whom. An organisation without rows has the default.
CREATE TABLE escalation_steps (
    organisation_id uuid NOT NULL REFERENCES organisations,
    step smallint NOT NULL CHECK (step >= 1),
    after_s integer NOT NULL CHECK (after_s > 0),
    role text NOT NULL CHECK (role IN ('admin', 'supervisor', 'operator')),
    severity_min text NOT NULL CHECK (severity_min IN ('low', 'medium', 'high', 'critical')),
    PRIMARY KEY (organisation_id, step)
);

-- Rules that need no model.
CREATE TABLE alarm_rules (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    machine_id uuid NOT NULL REFERENCES machines,
    name text NOT NULL,
    -- NULL: the whole machine (no_data only).
    sensor text,
    kind text NOT NULL CHECK (kind IN ('high', 'low', 'rate', 'no_data')),
    figure text NOT NULL CHECK (figure IN ('mean', 'min', 'max', 'last')),
    -- In the sensor's unit; for a rate, in it a minute.
    threshold float8,
    dead_band float8 NOT NULL CHECK (dead_band >= 0),
    on_delay_s integer NOT NULL CHECK (on_delay_s >= 0),
    off_delay_s integer NOT NULL CHECK (off_delay_s >= 0),
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    -- Bits from Monday (1) to Sunday (64), and minutes of the site's day; NULL: always.
    days smallint CHECK (days BETWEEN 1 AND 127),
    from_min smallint CHECK (from_min BETWEEN 0 AND 1439),
    to_min smallint CHECK (to_min BETWEEN 1 AND 1440),
    -- Judged only while the machine runs.
    only_running boolean NOT NULL,
    enabled boolean NOT NULL,
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    updated_at timestamptz NOT NULL,
    CHECK ((kind = 'no_data') = (threshold IS NULL)),
    CHECK (kind = 'no_data' OR sensor IS NOT NULL),
    CHECK ((days IS NULL) = (from_min IS NULL) AND (days IS NULL) = (to_min IS NULL))
);

CREATE INDEX alarm_rules_machine ON alarm_rules (machine_id);
CREATE INDEX alarm_rules_site ON alarm_rules (site_id, id);

-- Where each rule stands, so that a restart forgets no delay that has begun.
CREATE TABLE alarm_rule_states (
    rule_id uuid PRIMARY KEY REFERENCES alarm_rules ON DELETE CASCADE,
    phase text NOT NULL DEFAULT 'normal' CHECK (phase IN ('normal', 'pending', 'active', 'clearing')),
    -- Since when it is in a phase that a delay will end.
    since timestamptz,
    -- People know of it.
    told boolean NOT NULL DEFAULT false,
    -- The end of the last interval that was looked at, and what was measured in it.
    last_at timestamptz,
    last_value float8
) WITH (fillfactor = 70);

ALTER TABLE sites ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC';

ALTER TABLE alarms
    -- By score or rule alone; NULL: as `severity`.
    ADD COLUMN base_severity text CHECK (base_severity IN ('low', 'medium', 'high', 'critical')),
    -- When people were told; NULL while it is held, and for history.
    ADD COLUMN annunciated_at timestamptz,
    -- How often the condition was raised in the ten minutes before, this time included.
    ADD COLUMN repeats integer NOT NULL DEFAULT 1,
    ADD COLUMN incident_id uuid REFERENCES incidents;
UPDATE alarms SET base_severity = severity, annunciated_at = CASE WHEN late THEN NULL ELSE arrived_at END;

-- One alarm of a condition is open at a time: the newest takes the acknowledgement of those before it over.
UPDATE alarms old SET state = 'normal'
WHERE state = 'returned_unacknowledged' AND EXISTS (
    SELECT FROM alarms new
    WHERE coalesce(new.machine_id, new.gateway_id) = coalesce(old.machine_id, old.gateway_id)
      AND new.condition = old.condition AND new.state <> 'normal' AND (new.raised_at, new.id) > (old.raised_at, old.id));
DROP INDEX alarms_one_active;
CREATE UNIQUE INDEX alarms_one_open ON alarms (coalesce(machine_id, gateway_id), condition) WHERE state <> 'normal';
CREATE INDEX alarms_condition ON alarms (coalesce(machine_id, gateway_id), condition, raised_at DESC);
CREATE INDEX alarms_incident ON alarms (incident_id) WHERE incident_id IS NOT NULL;
CREATE INDEX alarms_ungrouped ON alarms (annunciated_at)
    WHERE incident_id IS NULL AND state <> 'normal' AND annunciated_at IS NOT NULL;
CREATE INDEX alarms_annunciated ON alarms (site_id, annunciated_at) WHERE annunciated_at IS NOT NULL;

-- What the application may touch, and whose rows it sees (0004_access.sql).
GRANT SELECT ON alarm_holds, incidents, incident_comments, notices, escalation_steps, alarm_rules, alarm_rule_states TO gemba_app;
GRANT INSERT ON alarm_holds, incident_comments, notices, escalation_steps, alarm_rules, alarm_rule_states TO gemba_app;
GRANT DELETE ON escalation_steps, alarm_rules TO gemba_app;
GRANT UPDATE (criticality) ON machines TO gemba_app;
GRANT UPDATE (time_zone) ON sites TO gemba_app;
GRANT UPDATE (returned_at, annunciated_at) ON alarms TO gemba_app;
GRANT UPDATE (begun, ended_at, ended_by) ON alarm_holds TO gemba_app;
GRANT UPDATE (assigned_to, assigned_at, closed_at, closed_by) ON incidents TO gemba_app;
GRANT UPDATE (name, sensor, kind, figure, threshold, dead_band, on_delay_s, off_delay_s, severity, days, from_min, to_min,
              only_running, enabled, updated_at)
    ON alarm_rules TO gemba_app;
GRANT UPDATE (phase, since, told) ON alarm_rule_states TO gemba_app;

ALTER TABLE alarm_holds ENABLE ROW LEVEL SECURITY;
ALTER TABLE incidents ENABLE ROW LEVEL SECURITY;
ALTER TABLE incident_comments ENABLE ROW LEVEL SECURITY;
ALTER TABLE notices ENABLE ROW LEVEL SECURITY;
ALTER TABLE escalation_steps ENABLE ROW LEVEL SECURITY;
ALTER TABLE alarm_rules ENABLE ROW LEVEL SECURITY;
ALTER TABLE alarm_rule_states ENABLE ROW LEVEL SECURITY;
CREATE POLICY scope ON alarm_holds TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON incidents TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON incident_comments TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON notices TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON escalation_steps TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON alarm_rules TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON alarm_rule_states TO gemba_app
    USING (EXISTS (SELECT FROM alarm_rules WHERE alarm_rules.id = alarm_rule_states.rule_id));
