-- Who may see and do what. Requests of people and tools run as the role `gemba_app` (made before the migrations: it belongs to
-- the cluster, not to this database), which owns nothing and sees only rows of its organisation and sites; the owner (intake,
-- jobs, the command line) sees everything.

-- The caller's organisation and sites, set for each transaction. Without them nothing is visible.
CREATE FUNCTION gemba_organisation() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('gemba.organisation', true), '')::uuid;
CREATE FUNCTION gemba_sites() RETURNS SETOF uuid LANGUAGE sql STABLE PARALLEL SAFE
    RETURN unnest(coalesce(nullif(current_setting('gemba.sites', true), ''), '{}')::uuid[]);

-- So that a row cannot name a site, user or area of another organisation or site.
ALTER TABLE sites ADD UNIQUE (organisation_id, id);
ALTER TABLE users ADD UNIQUE (organisation_id, id);

-- ISA-95 below a site: areas, and in them lines, cells and units.
CREATE TABLE areas (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    parent_id uuid,
    kind text NOT NULL CHECK (kind IN ('area', 'production_line', 'process_cell', 'production_unit', 'storage_zone',
                                       'work_cell')),
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (site_id, id),
    UNIQUE NULLS NOT DISTINCT (site_id, parent_id, name),
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    FOREIGN KEY (site_id, parent_id) REFERENCES areas (site_id, id)
);

CREATE INDEX areas_parent ON areas (parent_id);

-- A machine stands where its gateway does.
ALTER TABLE machines ADD COLUMN site_id uuid REFERENCES sites;
UPDATE machines SET site_id = gateways.site_id FROM gateways WHERE gateways.id = machines.gateway_id;
ALTER TABLE machines ALTER COLUMN site_id SET NOT NULL;
ALTER TABLE machines ADD COLUMN area_id uuid;
ALTER TABLE machines ADD FOREIGN KEY (site_id, area_id) REFERENCES areas (site_id, id);
CREATE INDEX machines_site ON machines (site_id);
CREATE INDEX machines_area ON machines (area_id) WHERE area_id IS NOT NULL;

CREATE FUNCTION machines_site() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT site_id INTO NEW.site_id FROM gateways WHERE id = NEW.gateway_id;
    RETURN NEW;
END $$;
CREATE TRIGGER machines_site BEFORE INSERT OR UPDATE OF gateway_id ON machines
    FOR EACH ROW EXECUTE FUNCTION machines_site();

-- What a user may do: at one site, or (site_id NULL) everywhere in the organisation.
CREATE TABLE grants (
    user_id uuid NOT NULL,
    organisation_id uuid NOT NULL,
    site_id uuid,
    role text NOT NULL CHECK (role IN ('admin', 'supervisor', 'operator', 'viewer')),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (user_id, site_id),
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id)
);

CREATE INDEX grants_site ON grants (site_id) WHERE site_id IS NOT NULL;

INSERT INTO grants (user_id, organisation_id, role) SELECT id, organisation_id, role FROM users;
ALTER TABLE users DROP COLUMN role;
ALTER TABLE users DROP COLUMN tokens_valid_from;
ALTER TABLE users ADD COLUMN display_name text;
ALTER TABLE users ADD COLUMN email text;
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE email IS NOT NULL;
-- Who was invited has no password yet.
ALTER TABLE users ALTER COLUMN password_hash DROP NOT NULL;

-- The keys that access tokens are signed with: secrets are derived from the cloud's key and the id, so that none stands here.
CREATE TABLE token_keys (
    id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What began with a login; it ends by itself, by its user, by an admin, with the password, or because an old refresh token came.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    organisation_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    used_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    ended_by text CHECK (ended_by IN ('logout', 'admin', 'password', 'reuse', 'disabled')),
    address inet,
    user_agent text,
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE
);

CREATE INDEX sessions_user ON sessions (user_id, id DESC);
CREATE INDEX sessions_expires ON sessions (expires_at);

-- All refresh tokens of a session, by their SHA-256; one is unused at a time.
CREATE TABLE refresh_tokens (
    hash bytea PRIMARY KEY CHECK (length(hash) = 32),
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    used_at timestamptz
);

CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);

-- Keys of tools. Each acts for its user, with no more than this role, at this site only if one is named.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    -- SHA-256 of the key, and how it begins, to know it again by.
    hash bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    begins text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'supervisor', 'operator', 'viewer')),
    site_id uuid,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz,
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id)
);

CREATE INDEX api_keys_user ON api_keys (user_id, id DESC);

-- Links with which somebody chooses a password, once: invited, or because the old one is lost.
CREATE TABLE password_links (
    -- SHA-256 of the link's secret.
    hash bytea PRIMARY KEY CHECK (length(hash) = 32),
    user_id uuid NOT NULL,
    organisation_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    FOREIGN KEY (organisation_id, user_id) REFERENCES users (organisation_id, id) ON DELETE CASCADE
);

CREATE INDEX password_links_user ON password_links (user_id);

-- Answers to requests with an Idempotency-Key, for a day.
CREATE TABLE idempotency_keys (
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    key text NOT NULL,
    -- Method and path; SHA-256 of the body.
    route text NOT NULL,
    body_hash bytea NOT NULL CHECK (length(body_hash) = 32),
    created_at timestamptz NOT NULL,
    -- NULL: it is under way, or nobody knows what became of it.
    status smallint,
    -- NULL: the answer held a secret and is not kept.
    answer bytea,
    etag text,
    PRIMARY KEY (user_id, key)
);

CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

-- Every change that somebody made. Names stand beside ids: they are to be read when the user is gone.
CREATE TABLE audit (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES organisations,
    site_id uuid,
    at timestamptz NOT NULL,
    user_id uuid,
    -- The user's name, or 'gemba-cloud' for the command line.
    actor text NOT NULL,
    -- The key with which it was done, if not in a session.
    api_key_id uuid,
    -- A word like 'machine.label'.
    action text NOT NULL,
    -- A word like 'machine', and its id.
    object text NOT NULL,
    object_id text NOT NULL,
    -- What was changed, as it was and as it is.
    before jsonb,
    after jsonb,
    address inet,
    -- `x-request-id` of the answer.
    request_id uuid
);

CREATE INDEX audit_newest ON audit (organisation_id, id DESC);
CREATE INDEX audit_object ON audit (object, object_id, id DESC);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit is only appended to' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- What the application may touch. A column that is not named here (password hashes) it cannot read; a table that is not, it
-- cannot use at all.
GRANT SELECT ON organisations, sites, areas, grants, machines, sensors, summaries, anomalies, alarms, commands, audit TO gemba_app;
GRANT SELECT (id, organisation_id, name, display_name, email, must_change_password, created_at, disabled_at)
    ON users TO gemba_app;
GRANT SELECT (id, site_id, name, state, mqtt_url, replaces, created_at, enrolled_at, revoked_at, last_seen_at, version,
              backlog_records, backlog_bytes, clock_trusted, drops)
    ON gateways TO gemba_app;
GRANT UPDATE (name) ON gateways TO gemba_app;
GRANT UPDATE (display_name, ignored, merged_into, area_id) ON machines TO gemba_app;
GRANT UPDATE (display_name, ignored) ON sensors TO gemba_app;
GRANT UPDATE (state, acknowledged_at, acknowledged_by, comment) ON alarms TO gemba_app;
GRANT INSERT ON commands, audit TO gemba_app;
GRANT INSERT ON users, sites, areas, grants, api_keys, password_links TO gemba_app;
GRANT UPDATE (password_hash, must_change_password, display_name, email, disabled_at) ON users TO gemba_app;
GRANT UPDATE (name) ON organisations, sites TO gemba_app;
GRANT UPDATE (name, kind, parent_id) ON areas TO gemba_app;
GRANT DELETE ON areas, grants TO gemba_app;
GRANT SELECT (id, user_id, organisation_id, created_at, used_at, expires_at, ended_at, ended_by, address, user_agent)
    ON sessions TO gemba_app;
GRANT UPDATE (ended_at, ended_by) ON sessions TO gemba_app;
GRANT SELECT (id, organisation_id, user_id, name, begins, role, site_id, created_at, expires_at, used_at, revoked_at)
    ON api_keys TO gemba_app;
GRANT UPDATE (revoked_at) ON api_keys TO gemba_app;
GRANT SELECT (user_id, organisation_id, created_at, expires_at, used_at), UPDATE (used_at) ON password_links TO gemba_app;

-- Policies. `(SELECT …)` is computed once for a statement; EXISTS lets the planner choose between one look-up and one hash.
ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;
ALTER TABLE sites ENABLE ROW LEVEL SECURITY;
ALTER TABLE areas ENABLE ROW LEVEL SECURITY;
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE gateways ENABLE ROW LEVEL SECURITY;
ALTER TABLE machines ENABLE ROW LEVEL SECURITY;
ALTER TABLE sensors ENABLE ROW LEVEL SECURITY;
ALTER TABLE summaries ENABLE ROW LEVEL SECURITY;
ALTER TABLE anomalies ENABLE ROW LEVEL SECURITY;
ALTER TABLE alarms ENABLE ROW LEVEL SECURITY;
ALTER TABLE commands ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE password_links ENABLE ROW LEVEL SECURITY;
-- Of the daemon alone: no policy, nothing granted.
ALTER TABLE token_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE refresh_tokens ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE enrolment_tokens ENABLE ROW LEVEL SECURITY;
ALTER TABLE lanes ENABLE ROW LEVEL SECURITY;
ALTER TABLE gaps ENABLE ROW LEVEL SECURITY;
ALTER TABLE refusals ENABLE ROW LEVEL SECURITY;
ALTER TABLE catalogs ENABLE ROW LEVEL SECURITY;
ALTER TABLE migrations ENABLE ROW LEVEL SECURITY;

CREATE POLICY scope ON organisations TO gemba_app USING (id = (SELECT gemba_organisation()));
CREATE POLICY scope ON users TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON grants TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON audit TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON sessions TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON api_keys TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON password_links TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON sites TO gemba_app USING (id IN (SELECT gemba_sites()));
-- A new site is in nobody's list yet.
CREATE POLICY new ON sites FOR INSERT TO gemba_app WITH CHECK (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON areas TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON gateways TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON machines TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON alarms TO gemba_app USING (site_id IN (SELECT gemba_sites()));
CREATE POLICY scope ON sensors TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.id = sensors.machine_id));
CREATE POLICY scope ON anomalies TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.id = anomalies.machine_id));
CREATE POLICY scope ON summaries TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = summaries.machine_key));
CREATE POLICY scope ON commands TO gemba_app
    USING (EXISTS (SELECT FROM gateways WHERE gateways.id = commands.gateway_id));
