-- Organisations own sites; a site has gateways; a gateway sees machines.
-- Times are event times unless the column says otherwise (`arrived_at`, `recorded_at`, `*_seen_at`).

CREATE TABLE organisations (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sites (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES organisations,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organisation_id, name)
);

INSERT INTO organisations (id, name) VALUES ('00000000-0000-7000-8000-000000000001', 'default');
INSERT INTO sites (id, organisation_id, name)
VALUES ('00000000-0000-7000-8000-000000000002', '00000000-0000-7000-8000-000000000001', 'default');

CREATE TABLE users (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES organisations,
    name text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'supervisor', 'operator', 'viewer')),
    must_change_password boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Tokens made before this moment are no longer taken.
    tokens_valid_from timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

CREATE TABLE gateways (
    id uuid PRIMARY KEY,
    site_id uuid NOT NULL REFERENCES sites,
    name text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'enrolled', 'revoked')),
    -- Ed25519; what the gateway signs its frames with.
    public_key bytea CHECK (length(public_key) = 32),
    -- SHA-256 of the random password for the MQTT connection.
    mqtt_password_hash bytea CHECK (length(mqtt_password_hash) = 32),
    -- Where it finds the broker, if not where the cloud's configuration says.
    mqtt_url text,
    -- The gateway whose machines this one takes over when it is enrolled.
    replaces uuid REFERENCES gateways,
    created_at timestamptz NOT NULL DEFAULT now(),
    enrolled_at timestamptz,
    revoked_at timestamptz,
    last_seen_at timestamptz,
    -- The latest `Status` message.
    version text,
    backlog_records bigint,
    backlog_bytes bigint,
    clock_trusted boolean,
    drops jsonb NOT NULL DEFAULT '[]',
    UNIQUE (site_id, name)
);

CREATE TABLE enrolment_tokens (
    -- SHA-256 of the token's secret.
    hash bytea PRIMARY KEY CHECK (length(hash) = 32),
    gateway_id uuid NOT NULL REFERENCES gateways,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);

-- How far each lane of each outbox is stored. `epoch` is the bits of an unsigned number.
CREATE TABLE lanes (
    gateway_id uuid NOT NULL REFERENCES gateways,
    epoch bigint NOT NULL,
    lane smallint NOT NULL,
    through bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gateway_id, epoch, lane)
);

-- Records that will never come.
CREATE TABLE gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gateway_id uuid NOT NULL REFERENCES gateways,
    epoch bigint NOT NULL,
    lane smallint NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    count bigint NOT NULL,
    reason text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- Records that were read and refused for good.
CREATE TABLE refusals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gateway_id uuid NOT NULL REFERENCES gateways,
    epoch bigint NOT NULL,
    lane smallint NOT NULL,
    number bigint NOT NULL,
    reason text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (gateway_id, epoch, lane, number)
);

CREATE TABLE machines (
    id uuid PRIMARY KEY,
    -- Stands for the machine in the large tables.
    key integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    gateway_id uuid NOT NULL REFERENCES gateways,
    name text NOT NULL,
    display_name text,
    ignored boolean NOT NULL DEFAULT false,
    -- Shown as a part of another machine; its rows stay its own, so that this can be undone.
    merged_into uuid REFERENCES machines,
    created_at timestamptz NOT NULL DEFAULT now(),
    catalog_revision integer NOT NULL DEFAULT 0,
    step_ms integer NOT NULL DEFAULT 1000,
    interval_ms integer NOT NULL DEFAULT 10000,
    model text NOT NULL DEFAULT '',
    -- The latest state, from live messages and summaries.
    last_reading_at timestamptz,
    detector text NOT NULL DEFAULT 'calibrating'
        CHECK (detector IN ('calibrating', 'watching', 'anomalous', 'blind')),
    calibration_percent smallint,
    score real,
    health_percent real,
    mode text NOT NULL DEFAULT 'unknown' CHECK (mode IN ('unknown', 'off', 'idle', 'running')),
    -- By catalog position.
    last_values float8[] NOT NULL DEFAULT '{}',
    UNIQUE (gateway_id, name)
);

CREATE INDEX machines_merged_into ON machines (merged_into) WHERE merged_into IS NOT NULL;

CREATE TABLE sensors (
    machine_id uuid NOT NULL REFERENCES machines,
    position smallint NOT NULL,
    name text NOT NULL,
    display_name text,
    unit text,
    ignored boolean NOT NULL DEFAULT false,
    PRIMARY KEY (machine_id, position),
    UNIQUE (machine_id, name)
);

-- How one outbox of a gateway numbers a machine's sensors. A gateway that lost its data, or another that took its
-- place, finds the same sensors in another order.
CREATE TABLE catalogs (
    machine_id uuid NOT NULL REFERENCES machines,
    epoch bigint NOT NULL,
    revision integer NOT NULL,
    -- By the gateway's position: the position in `sensors`.
    positions smallint[] NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (machine_id, epoch)
);

-- One row for each machine and interval; the arrays go by catalog position.
-- A sensor without readings has count 0 and NaN.
CREATE TABLE summaries (
    machine_key integer NOT NULL,
    start timestamptz NOT NULL,
    interval_ms integer NOT NULL,
    counts integer[] NOT NULL,
    mins float8[] NOT NULL,
    maxs float8[] NOT NULL,
    means float8[] NOT NULL,
    sds float8[] NOT NULL,
    lasts float8[] NOT NULL,
    -- A byte a sensor: 0 good, 1 held, 2 missing, 3 faulty, 255 none.
    qualities bytea NOT NULL,
    detector smallint NOT NULL,
    score real,
    health_percent real,
    mode smallint NOT NULL,
    energy_wh float8,
    clock_trusted boolean NOT NULL,
    PRIMARY KEY (machine_key, start)
) PARTITION BY RANGE (start);

CREATE TABLE anomalies (
    id uuid PRIMARY KEY,
    machine_id uuid NOT NULL REFERENCES machines,
    opened_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    closed_at timestamptz,
    score real NOT NULL,
    score_max real NOT NULL,
    threshold real NOT NULL,
    -- By catalog position; they sum to one.
    shares real[] NOT NULL,
    model text NOT NULL,
    -- The raw window of the latest event that carried one: {"step_ms", "first", "sensors", "values"}.
    raw_window jsonb,
    UNIQUE (machine_id, opened_at)
);

CREATE INDEX anomalies_opened_at ON anomalies (opened_at DESC, id DESC);

CREATE TABLE alarms (
    id uuid PRIMARY KEY,
    site_id uuid NOT NULL REFERENCES sites,
    gateway_id uuid NOT NULL REFERENCES gateways,
    -- NULL for an alarm of the gateway itself.
    machine_id uuid REFERENCES machines,
    -- 'anomaly', 'sensor_fault:<sensor name>', 'gateway_offline'
    condition text NOT NULL,
    -- ISA-18.2; 'normal' is the end.
    state text NOT NULL CHECK (state IN ('unacknowledged', 'acknowledged', 'returned_unacknowledged', 'normal')),
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    message text NOT NULL,
    anomaly_id uuid REFERENCES anomalies,
    raised_at timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL,
    -- It arrived so long after it was raised that it is history.
    late boolean NOT NULL,
    returned_at timestamptz,
    acknowledged_at timestamptz,
    acknowledged_by uuid REFERENCES users,
    comment text
);

CREATE UNIQUE INDEX alarms_one_active ON alarms (coalesce(machine_id, gateway_id), condition)
    WHERE state IN ('unacknowledged', 'acknowledged');
CREATE INDEX alarms_raised_at ON alarms (raised_at DESC, id DESC);
CREATE INDEX alarms_open ON alarms (site_id) WHERE state <> 'normal';
