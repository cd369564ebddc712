-- What electricity costs and emits at a site, what machines used hour by hour, and what was to be expected of them.

-- Each hour of a day (UTC) of a machine that measures its power: narrow, so that hours of a whole fleet are read by days. It
-- outlives the hours in `rollup_hours`.
CREATE TABLE energy_days (
    machine_key integer NOT NULL,
    -- The day's first moment.
    start timestamptz NOT NULL,
    -- 24 each. NULL: of that hour nothing was measured.
    wh float8[] NOT NULL,
    -- Of intervals with energy; and of those, of intervals in which the machine ran.
    measured_ms integer[] NOT NULL,
    running_ms integer[] NOT NULL,
    PRIMARY KEY (machine_key, start)
) WITH (fillfactor = 70);

-- What is there already. Hours that were dropped by now stay without it.
INSERT INTO energy_days
SELECT d.machine_key, d.day, array_agg(r.energy_wh ORDER BY h),
       array_agg(CASE WHEN r.energy_wh IS NULL THEN 0
                      ELSE (r.mode_ms[1] + r.mode_ms[2] + r.mode_ms[3] + r.mode_ms[4])::int END ORDER BY h),
       array_agg(CASE WHEN r.energy_wh IS NULL THEN 0 ELSE r.mode_ms[4]::int END ORDER BY h)
FROM (SELECT DISTINCT machine_key, date_trunc('day', start, 'UTC') AS day FROM rollup_hours WHERE energy_wh IS NOT NULL) AS d
CROSS JOIN generate_series(0, 23) AS h
LEFT JOIN rollup_hours r ON r.machine_key = d.machine_key AND r.start = d.day + h * interval '1 hour'
GROUP BY 1, 2;

-- What a kilowatt-hour costs, from a day on until the next tariff of the site.
CREATE TABLE tariffs (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    name text NOT NULL,
    -- ISO 4217.
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    -- By the site's clocks.
    valid_from date NOT NULL,
    -- Millionths of the currency's unit, outside of all bands.
    price_micro bigint NOT NULL,
    -- A list of {name, days, from_min, to_min, price_micro}.
    bands jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (site_id, valid_from)
);

-- What a kilowatt-hour emits, from a moment on until the next factor of the site.
CREATE TABLE carbon_factors (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    valid_from timestamptz NOT NULL,
    -- CO2 equivalent.
    g_per_kwh float8 NOT NULL CHECK (g_per_kwh >= 0),
    -- Who says so.
    source text NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (site_id, valid_from)
);

-- Which sensor says how much a machine makes.
CREATE TABLE machine_production (
    machine_id uuid PRIMARY KEY REFERENCES machines,
    sensor text NOT NULL,
    -- A count that goes up, or so much a time.
    kind text NOT NULL CHECK (kind IN ('counter', 'rate'))
);

-- Energy of a day as it is to be expected: intercept + slope × what was made (or hours in which it ran).
CREATE TABLE baselines (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    -- NULL: of the site.
    machine_id uuid REFERENCES machines,
    name text NOT NULL,
    -- The days that it was fitted to, by the site's clocks; `to_day` exclusive.
    from_day date NOT NULL,
    to_day date NOT NULL,
    driver text NOT NULL CHECK (driver IN ('production', 'running_hours')),
    -- Of the driver.
    unit text NOT NULL,
    -- What counts production: a list of {machine, sensor, kind, unit}.
    sensors jsonb NOT NULL,
    -- Whose energy it is of.
    machines uuid[] NOT NULL,
    days integer NOT NULL,
    intercept_kwh float8 NOT NULL,
    slope_kwh float8 NOT NULL,
    r2 float8 NOT NULL,
    rmse_kwh float8 NOT NULL,
    cv_rmse float8 NOT NULL,
    driver_mean float8 NOT NULL,
    -- Sum of squared deviations from the mean.
    driver_squares float8 NOT NULL,
    driver_min float8 NOT NULL,
    driver_max float8 NOT NULL,
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users
);

CREATE INDEX baselines_site ON baselines (site_id, id DESC);

ALTER TABLE energy_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE tariffs ENABLE ROW LEVEL SECURITY;
ALTER TABLE carbon_factors ENABLE ROW LEVEL SECURITY;
ALTER TABLE machine_production ENABLE ROW LEVEL SECURITY;
ALTER TABLE baselines ENABLE ROW LEVEL SECURITY;
CREATE POLICY scope ON energy_days TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = energy_days.machine_key));
CREATE POLICY scope ON tariffs TO gemba_app USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
CREATE POLICY scope ON carbon_factors TO gemba_app USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
CREATE POLICY scope ON machine_production TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.id = machine_production.machine_id));
CREATE POLICY scope ON baselines TO gemba_app USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
GRANT SELECT ON energy_days TO gemba_app;
GRANT SELECT, INSERT, DELETE ON tariffs, carbon_factors, machine_production, baselines TO gemba_app;
GRANT UPDATE (name, currency, valid_from, price_micro, bands) ON tariffs TO gemba_app;
GRANT UPDATE (valid_from, g_per_kwh, source) ON carbon_factors TO gemba_app;
GRANT UPDATE (sensor, kind) ON machine_production TO gemba_app;
GRANT UPDATE (name) ON baselines TO gemba_app;

-- How long the past is kept is said in the API.
GRANT UPDATE (intervals_kept_days, hours_kept_days) ON organisations TO gemba_app;
