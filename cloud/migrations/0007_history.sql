-- How long an organisation's past is kept: intervals, and hours; days for ever.
ALTER TABLE organisations ADD COLUMN intervals_kept_days integer NOT NULL DEFAULT 30
    CHECK (intervals_kept_days BETWEEN 1 AND 3660);
ALTER TABLE organisations ADD COLUMN hours_kept_days integer NOT NULL DEFAULT 730
    CHECK (hours_kept_days BETWEEN 1 AND 3660);
ALTER TABLE organisations ADD CONSTRAINT hours_outlive_intervals CHECK (hours_kept_days >= intervals_kept_days);

-- The days (UTC) of which intervals were ever stored.
CREATE TABLE history_days (
    day date PRIMARY KEY,
    -- When rows last came for it after it was over, to some minutes; else when it was made.
    touched_at timestamptz NOT NULL DEFAULT now(),
    -- Its intervals were dropped: what still comes for it is in rollups only.
    dropped_at timestamptz
);

-- The same for organisations that keep intervals for a shorter time than others.
CREATE TABLE history_drops (
    organisation_id uuid NOT NULL REFERENCES organisations ON DELETE CASCADE,
    day date NOT NULL,
    PRIMARY KEY (organisation_id, day)
);

INSERT INTO history_days (day)
SELECT to_date(substr(c.relname, 11), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'summaries'::regclass AND c.relname ~ '^summaries_\d{8}$';

-- One row for each machine and hour in which an interval began. The arrays go by catalog position; a row may have fewer
-- sensors than the catalog. Rows are updated in place: room is left for that.
CREATE TABLE rollup_hours (
    machine_key integer NOT NULL,
    start timestamptz NOT NULL,
    -- The start of the latest interval in it.
    last_start timestamptz NOT NULL,
    intervals integer NOT NULL,
    -- Readings.
    counts bigint[] NOT NULL,
    -- Readings again; an interval in which a value was only held weighs as one.
    weights bigint[] NOT NULL,
    mins float8[] NOT NULL,
    maxs float8[] NOT NULL,
    -- By weight.
    means float8[] NOT NULL,
    -- Squared deviations from the mean, times their weight: the standard deviation is sqrt(squares / weight).
    squares float8[] NOT NULL,
    lasts float8[] NOT NULL,
    -- When the interval of `lasts` began: milliseconds after `start`; -1 for none.
    last_ms integer[] NOT NULL,
    score_max real,
    health_min real,
    -- NULL where no interval had energy.
    energy_wh float8,
    -- Of intervals in which the machine was: unknown, off, idle, running.
    mode_ms bigint[] NOT NULL,
    -- Of intervals in which the detector said: anomalous.
    anomalous_ms bigint NOT NULL,
    PRIMARY KEY (machine_key, start)
) PARTITION BY RANGE (start);

CREATE TABLE rollup_days (LIKE rollup_hours INCLUDING ALL) WITH (fillfactor = 70);

-- What is there already (this part stands by itself: a test runs it again).
DO $$
DECLARE
    month date;
    unit text;
    finite CONSTANT text := '(%1$s > ''-Infinity'' AND %1$s < ''Infinity'')';
BEGIN
    FOR month IN SELECT DISTINCT date_trunc('month', day)::date FROM history_days LOOP
        EXECUTE format(
            'CREATE TABLE IF NOT EXISTS rollup_hours_%s PARTITION OF rollup_hours FOR VALUES FROM (%L) TO (%L) WITH (fillfactor = 70)',
            to_char(month, 'YYYYMM'), month::timestamp AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
    END LOOP;
    FOREACH unit IN ARRAY ARRAY['hour', 'day'] LOOP
        EXECUTE format(
            $sql$
            INSERT INTO %I
            WITH cells AS (
                SELECT machine_key, date_trunc(%L, start, 'UTC') AS unit, start, i, counts[i] AS n, greatest(counts[i], 1) AS w,
                       mins[i] AS min, maxs[i] AS max, means[i] AS mean, CASE WHEN %s THEN sds[i] ELSE 0 END AS sd, lasts[i] AS last,
                       %s AND %s AND %s AS good, %s AS lasting
                FROM summaries, generate_subscripts(counts, 1) AS i
            ), means AS (
                SELECT machine_key, unit, i, sum(mean * w) / sum(w) AS of_all FROM cells WHERE good GROUP BY 1, 2, 3
            ), sensors AS (
                SELECT machine_key, unit, i, sum(n)::int8 AS n, coalesce(sum(w) FILTER (WHERE good), 0)::int8 AS w,
                       coalesce(min(min) FILTER (WHERE good), 'NaN') AS min, coalesce(max(max) FILTER (WHERE good), 'NaN') AS max,
                       coalesce(min(of_all), 'NaN') AS mean,
                       coalesce(sum(w * (sd ^ 2 + (mean - of_all) ^ 2)) FILTER (WHERE good), 0) AS squares,
                       coalesce((array_agg(last ORDER BY start DESC) FILTER (WHERE lasting))[1], 'NaN') AS last,
                       coalesce((extract(epoch FROM max(start) FILTER (WHERE lasting) - unit) * 1000)::int, -1) AS last_ms
                FROM cells LEFT JOIN means USING (machine_key, unit, i) GROUP BY 1, 2, 3
            ), lists AS (
                SELECT machine_key, unit, array_agg(n ORDER BY i) AS counts, array_agg(w ORDER BY i) AS weights,
                       array_agg(min ORDER BY i) AS mins, array_agg(max ORDER BY i) AS maxs, array_agg(mean ORDER BY i) AS means,
                       array_agg(squares ORDER BY i) AS squares, array_agg(last ORDER BY i) AS lasts, array_agg(last_ms ORDER BY i) AS last_ms
                FROM sensors GROUP BY 1, 2
            )
            SELECT m.machine_key, m.unit, m.last_start, m.intervals, coalesce(l.counts, '{}'), coalesce(l.weights, '{}'),
                   coalesce(l.mins, '{}'), coalesce(l.maxs, '{}'), coalesce(l.means, '{}'), coalesce(l.squares, '{}'),
                   coalesce(l.lasts, '{}'), coalesce(l.last_ms, '{}'), m.score, m.health, m.energy, m.modes, m.anomalous
            FROM (
                SELECT machine_key, date_trunc(%L, start, 'UTC') AS unit, max(start) AS last_start, count(*)::int AS intervals,
                       max(score) AS score, min(health_percent) AS health, sum(energy_wh) AS energy,
                       ARRAY[coalesce(sum(interval_ms) FILTER (WHERE mode = 0), 0), coalesce(sum(interval_ms) FILTER (WHERE mode = 1), 0),
                             coalesce(sum(interval_ms) FILTER (WHERE mode = 2), 0), coalesce(sum(interval_ms) FILTER (WHERE mode = 3), 0)
                            ]::int8[] AS modes,
                       coalesce(sum(interval_ms) FILTER (WHERE detector = 2), 0)::int8 AS anomalous
                FROM summaries GROUP BY 1, 2
            ) AS m LEFT JOIN lists AS l USING (machine_key, unit)
            $sql$,
            'rollup_' || unit || 's', unit, format(finite, 'sds[i]'), format(finite, 'mins[i]'), format(finite, 'maxs[i]'),
            format(finite, 'means[i]'), format(finite, 'lasts[i]'), unit);
    END LOOP;
END $$;
-- (Up to here.)

-- Intervals of closed days, packed: a row for each machine and up to six hours.
CREATE TABLE summary_blocks (
    machine_key integer NOT NULL,
    -- Of its first and its last interval.
    start timestamptz NOT NULL,
    last_start timestamptz NOT NULL,
    intervals integer NOT NULL,
    -- What belongs to the machine: times, verdicts, energy (the cloud's own form, history/block.rs).
    machine bytea NOT NULL,
    PRIMARY KEY (machine_key, start)
) PARTITION BY RANGE (start);
ALTER TABLE summary_blocks ALTER COLUMN machine SET STORAGE EXTERNAL;

-- What belongs to one sensor of such a block.
CREATE TABLE sensor_blocks (
    machine_key integer NOT NULL,
    start timestamptz NOT NULL,
    position smallint NOT NULL,
    -- Counts, qualities, minima, maxima, means.
    figures bytea NOT NULL,
    -- Standard deviations, last values.
    rest bytea NOT NULL,
    PRIMARY KEY (machine_key, position, start)
) PARTITION BY RANGE (start);
ALTER TABLE sensor_blocks ALTER COLUMN figures SET STORAGE EXTERNAL, ALTER COLUMN rest SET STORAGE EXTERNAL;

-- People read what their sites' machines did; the rest is the daemon's.
GRANT SELECT ON rollup_hours, rollup_days, summary_blocks, sensor_blocks TO gemba_app;
ALTER TABLE rollup_hours ENABLE ROW LEVEL SECURITY;
ALTER TABLE rollup_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE summary_blocks ENABLE ROW LEVEL SECURITY;
ALTER TABLE sensor_blocks ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE history_drops ENABLE ROW LEVEL SECURITY;
CREATE POLICY scope ON rollup_hours TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = rollup_hours.machine_key));
CREATE POLICY scope ON rollup_days TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = rollup_days.machine_key));
CREATE POLICY scope ON summary_blocks TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = summary_blocks.machine_key));
CREATE POLICY scope ON sensor_blocks TO gemba_app
    USING (EXISTS (SELECT FROM machines WHERE machines.key = sensor_blocks.machine_key));

-- For tools that read the database themselves (README, "Other tools"): names and columns stay, columns may be added at the end.
-- They cover intervals that are not packed yet, hours, and days. One row for each sensor that has something.
CREATE VIEW sensor_intervals WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       n.name AS sensor, n.unit, r.start AS time, r.interval_ms, r.counts[n.position + 1] AS readings,
       nullif(r.mins[n.position + 1], 'NaN') AS min, nullif(r.maxs[n.position + 1], 'NaN') AS max,
       nullif(r.means[n.position + 1], 'NaN') AS mean, nullif(r.sds[n.position + 1], 'NaN') AS sd,
       nullif(r.lasts[n.position + 1], 'NaN') AS last,
       CASE q.code WHEN 0 THEN 'good' WHEN 1 THEN 'held' WHEN 2 THEN 'missing' WHEN 3 THEN 'faulty' END
           AS quality
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN sensors n ON n.machine_id = m.id
JOIN summaries r ON r.machine_key = m.key AND r.counts[n.position + 1] IS NOT NULL
CROSS JOIN LATERAL (SELECT CASE WHEN n.position < length(r.qualities) THEN get_byte(r.qualities, n.position) ELSE 255 END) AS q (code)
WHERE q.code <> 255;

CREATE VIEW machine_intervals WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       r.start AS time, r.interval_ms,
       (ARRAY['calibrating', 'watching', 'anomalous', 'blind', 'uncalibrated'])[r.detector + 1] AS detector,
       r.score, r.health_percent, (ARRAY['unknown', 'off', 'idle', 'running'])[r.mode + 1] AS mode, r.energy_wh, r.clock_trusted
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN summaries r ON r.machine_key = m.key;

CREATE VIEW sensor_hours WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       n.name AS sensor, n.unit, r.start AS time, r.counts[n.position + 1] AS readings,
       r.mins[n.position + 1] AS min, r.maxs[n.position + 1] AS max, r.means[n.position + 1] AS mean,
       sqrt(r.squares[n.position + 1] / r.weights[n.position + 1]) AS sd, nullif(r.lasts[n.position + 1], 'NaN') AS last
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN sensors n ON n.machine_id = m.id
JOIN rollup_hours r ON r.machine_key = m.key AND r.weights[n.position + 1] > 0;

CREATE VIEW sensor_days WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       n.name AS sensor, n.unit, r.start AS time, r.counts[n.position + 1] AS readings,
       r.mins[n.position + 1] AS min, r.maxs[n.position + 1] AS max, r.means[n.position + 1] AS mean,
       sqrt(r.squares[n.position + 1] / r.weights[n.position + 1]) AS sd, nullif(r.lasts[n.position + 1], 'NaN') AS last
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN sensors n ON n.machine_id = m.id
JOIN rollup_days r ON r.machine_key = m.key AND r.weights[n.position + 1] > 0;

CREATE VIEW machine_hours WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       r.start AS time, r.intervals, r.score_max, r.health_min AS health_percent_min, r.energy_wh,
       r.mode_ms[1] / 1000.0 AS unknown_s, r.mode_ms[2] / 1000.0 AS off_s, r.mode_ms[3] / 1000.0 AS idle_s,
       r.mode_ms[4] / 1000.0 AS running_s, r.anomalous_ms / 1000.0 AS anomalous_s
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN rollup_hours r ON r.machine_key = m.key;

CREATE VIEW machine_days WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(t.display_name, t.name) AS machine, t.id AS machine_id,
       r.start AS time, r.intervals, r.score_max, r.health_min AS health_percent_min, r.energy_wh,
       r.mode_ms[1] / 1000.0 AS unknown_s, r.mode_ms[2] / 1000.0 AS off_s, r.mode_ms[3] / 1000.0 AS idle_s,
       r.mode_ms[4] / 1000.0 AS running_s, r.anomalous_ms / 1000.0 AS anomalous_s
FROM machines m JOIN machines t ON t.id = coalesce(m.merged_into, m.id)
JOIN gateways g ON g.id = m.gateway_id JOIN sites s ON s.id = m.site_id JOIN organisations o ON o.id = s.organisation_id
JOIN rollup_days r ON r.machine_key = m.key;

GRANT SELECT ON sensor_intervals, machine_intervals, sensor_hours, sensor_days, machine_hours, machine_days TO gemba_app;
