-- How many sensors a machine has is shown in every list of machines: counted as they come, not each time.
ALTER TABLE machines ADD COLUMN sensors_count integer NOT NULL DEFAULT 0;
UPDATE machines SET sensors_count = (SELECT count(*) FROM sensors WHERE machine_id = machines.id);

CREATE FUNCTION count_sensors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE machines SET sensors_count = sensors_count + CASE TG_OP WHEN 'INSERT' THEN counted.sensors ELSE -counted.sensors END
    FROM (SELECT machine_id, count(*) AS sensors FROM changed GROUP BY machine_id) AS counted WHERE id = machine_id;
    RETURN NULL;
END $$;
CREATE TRIGGER sensors_counted AFTER INSERT ON sensors REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION count_sensors();
CREATE TRIGGER sensors_uncounted AFTER DELETE ON sensors REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION count_sensors();

-- Of many rows at a time: who may see what is looked up once in a statement, not for each row.
ALTER POLICY scope ON summaries USING (machine_key IN (SELECT key FROM machines));
ALTER POLICY scope ON rollup_hours USING (machine_key IN (SELECT key FROM machines));
ALTER POLICY scope ON rollup_days USING (machine_key IN (SELECT key FROM machines));
ALTER POLICY scope ON energy_days USING (machine_key IN (SELECT key FROM machines));
