-- Machines in the order in which they are listed: a page of them is a few look-ups.
CREATE INDEX machines_shown ON machines (coalesce(display_name, name), id) WHERE merged_into IS NULL;

-- Sensors and anomalies know the site of their machine: whether they may be seen is asked of each row of a list.
ALTER TABLE machines ADD CONSTRAINT machines_id_site UNIQUE (id, site_id);

CREATE FUNCTION site_of_machine() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT site_id INTO NEW.site_id FROM machines WHERE id = NEW.machine_id;
    RETURN NEW;
END $$;

ALTER TABLE sensors ADD COLUMN site_id uuid;
UPDATE sensors SET site_id = machines.site_id FROM machines WHERE machines.id = machine_id;
ALTER TABLE sensors ALTER COLUMN site_id SET NOT NULL,
    DROP CONSTRAINT sensors_machine_id_fkey,
    ADD FOREIGN KEY (machine_id, site_id) REFERENCES machines (id, site_id) ON UPDATE CASCADE;
CREATE TRIGGER sensors_site BEFORE INSERT ON sensors FOR EACH ROW EXECUTE FUNCTION site_of_machine();
ALTER POLICY scope ON sensors USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));

ALTER TABLE anomalies ADD COLUMN site_id uuid;
UPDATE anomalies SET site_id = machines.site_id FROM machines WHERE machines.id = machine_id;
ALTER TABLE anomalies ALTER COLUMN site_id SET NOT NULL,
    DROP CONSTRAINT anomalies_machine_id_fkey,
    ADD FOREIGN KEY (machine_id, site_id) REFERENCES machines (id, site_id) ON UPDATE CASCADE;
CREATE TRIGGER anomalies_site BEFORE INSERT ON anomalies FOR EACH ROW EXECUTE FUNCTION site_of_machine();
ALTER POLICY scope ON anomalies USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
