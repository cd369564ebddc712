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
ALTER TABLE users ADD COLUMN display_name text;
ALTER TABLE users ADD COLUMN email text;
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE email IS NOT NULL;
-- Who was invited has no password yet.
ALTER TABLE users ALTER COLUMN password_hash DROP NOT NULL;

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
GRANT SELECT (id, organisation_id, name, display_name, email, must_change_password, created_at, tokens_valid_from, disabled_at)
    ON users TO gemba_app;
GRANT SELECT (id, site_id, name, state, mqtt_url, replaces, created_at, enrolled_at, revoked_at, last_seen_at, version,
              backlog_records, backlog_bytes, clock_trusted, drops)
    ON gateways TO gemba_app;
GRANT UPDATE (name) ON gateways TO gemba_app;
GRANT UPDATE (display_name, ignored, merged_into, area_id) ON machines TO gemba_app;
GRANT UPDATE (display_name, ignored) ON sensors TO gemba_app;
GRANT UPDATE (state, acknowledged_at, acknowledged_by, comment) ON alarms TO gemba_app;
GRANT INSERT ON commands, audit TO gemba_app;
GRANT UPDATE (password_hash, must_change_password, tokens_valid_from) ON users TO gemba_app;

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
-- Of the daemon alone: no policy, nothing granted.
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
CREATE POLICY scope ON sites TO gemba_app USING (id IN (SELECT gemba_sites()));
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
