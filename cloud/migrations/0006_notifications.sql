-- Who is told of incidents, over which channel, and what became of it.

-- Called for what happens in an organisation. A secret is not stored: it is derived of the cloud's key, the id and the generation.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES organisations,
    name text NOT NULL,
    url text NOT NULL,
    -- NULL: all.
    site_ids uuid[],
    severity_min text NOT NULL CHECK (severity_min IN ('low', 'medium', 'high', 'critical')),
    enabled boolean NOT NULL,
    -- The receiver said that it wants no more (410).
    gone_at timestamptz,
    secret_generation integer NOT NULL DEFAULT 1,
    -- For a time after this moment the secret before signs as well.
    secret_rotated_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    UNIQUE (organisation_id, id)
);

CREATE UNIQUE INDEX webhooks_name ON webhooks (organisation_id, lower(name)) WHERE deleted_at IS NULL;

-- What a user chose; without a row the defaults of the program hold.
CREATE TABLE notification_choices (
    user_id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    email boolean NOT NULL,
    severity_min text NOT NULL CHECK (severity_min IN ('low', 'medium', 'high', 'critical')),
    -- NULL: all.
    site_ids uuid[],
    -- Bits from Monday (1) to Sunday (64), minutes of the day, and whose day it is (IANA); NULL: no quiet hours.
    quiet_days smallint CHECK (quiet_days BETWEEN 1 AND 127),
    quiet_from_min smallint CHECK (quiet_from_min BETWEEN 0 AND 1439),
    quiet_to_min smallint CHECK (quiet_to_min BETWEEN 0 AND 1439),
    quiet_time_zone text,
    critical_passes boolean NOT NULL,
    updated_at timestamptz NOT NULL,
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE,
    CHECK (num_nulls(quiet_days, quiet_from_min, quiet_to_min, quiet_time_zone) IN (0, 4))
);

-- One message to one recipient. The id is the webhook-id, or the left part of the e-mail's Message-ID.
CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    -- NULL for a test.
    site_id uuid,
    kind text NOT NULL CHECK (kind IN ('notice', 'digest', 'test')),
    notice_id uuid REFERENCES notices,
    incident_id uuid REFERENCES incidents,
    severity text CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    channel text NOT NULL CHECK (channel IN ('webhook', 'email')),
    webhook_id uuid,
    user_id uuid,
    recipient_id uuid NOT NULL GENERATED ALWAYS AS (coalesce(webhook_id, user_id)) STORED,
    -- The webhook's name or the e-mail address.
    recipient text NOT NULL,
    -- `failed` is tried again, `dead` is not.
    state text NOT NULL CHECK (state IN ('waiting', 'sending', 'sent', 'failed', 'dead', 'skipped')),
    -- Why it is skipped.
    reason text CHECK (reason IN ('no_address', 'no_mail_server', 'closed', 'in_digest', 'no_role', 'switched_off')),
    -- Why it waits to be gathered.
    hold text CHECK (hold IN ('quiet_hours', 'limit')),
    -- The digest that tells of it.
    digest_id uuid REFERENCES deliveries ON DELETE SET NULL,
    content jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    -- The next attempt.
    not_before timestamptz NOT NULL,
    -- Whoever is sending it has this long; then another may.
    lease_until timestamptz,
    last_attempt_at timestamptz,
    last_error text,
    -- HTTP's status, or SMTP's reply code.
    status smallint,
    created_at timestamptz NOT NULL,
    sent_at timestamptz,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    FOREIGN KEY (organisation_id, webhook_id) REFERENCES webhooks (organisation_id, id),
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE,
    CHECK ((channel = 'webhook') = (webhook_id IS NOT NULL) AND (channel = 'email') = (user_id IS NOT NULL)),
    CHECK ((state = 'skipped') = (reason IS NOT NULL)),
    CHECK (site_id IS NOT NULL OR kind = 'test')
);

CREATE UNIQUE INDEX deliveries_once ON deliveries (notice_id, channel, recipient_id) WHERE notice_id IS NOT NULL;
CREATE INDEX deliveries_due ON deliveries (not_before) WHERE state IN ('waiting', 'failed', 'sending');
CREATE INDEX deliveries_sending ON deliveries (recipient_id) WHERE state = 'sending';
CREATE INDEX deliveries_dead ON deliveries (id) WHERE state = 'dead';
CREATE INDEX deliveries_incident ON deliveries (incident_id, id DESC) WHERE incident_id IS NOT NULL;
CREATE INDEX deliveries_newest ON deliveries (organisation_id, id DESC);
CREATE INDEX deliveries_digest ON deliveries (digest_id) WHERE digest_id IS NOT NULL;

-- Notices that deliveries were made of.
CREATE TABLE notices_planned (
    notice_id uuid PRIMARY KEY REFERENCES notices,
    planned_at timestamptz NOT NULL
);

GRANT SELECT, INSERT ON webhooks, notification_choices, deliveries TO gemba_app;
GRANT UPDATE (name, url, site_ids, severity_min, enabled, gone_at, secret_generation, secret_rotated_at, updated_at, deleted_at)
    ON webhooks TO gemba_app;
GRANT UPDATE (email, severity_min, site_ids, quiet_days, quiet_from_min, quiet_to_min, quiet_time_zone, critical_passes, updated_at)
    ON notification_choices TO gemba_app;
GRANT UPDATE (state, hold, attempts, not_before, lease_until) ON deliveries TO gemba_app;

ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY;
ALTER TABLE notification_choices ENABLE ROW LEVEL SECURITY;
ALTER TABLE deliveries ENABLE ROW LEVEL SECURITY;
-- Of the daemon alone.
ALTER TABLE notices_planned ENABLE ROW LEVEL SECURITY;

CREATE POLICY scope ON webhooks TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON notification_choices TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
-- A test belongs to no site.
CREATE POLICY scope ON deliveries TO gemba_app
    USING (site_id IN (SELECT gemba_sites())
        OR (site_id IS NULL AND organisation_id = (SELECT gemba_organisation())));
