-- The sites of a scope as one list, made once for a statement; a subquery of rows was hashed anew for each table of it.
CREATE FUNCTION gemba_site_list() RETURNS uuid[] LANGUAGE sql STABLE PARALLEL SAFE
    RETURN coalesce(nullif(current_setting('gemba.sites', true), ''), '{}')::uuid[];

ALTER POLICY scope ON sites USING (id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON areas USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON gateways USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON machines USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON alarms USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON alarm_holds USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON incidents USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON incident_comments USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON notices USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON alarm_rules USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
ALTER POLICY scope ON deliveries
    USING (site_id = ANY ((SELECT gemba_site_list())::uuid[])
        OR (site_id IS NULL AND organisation_id = (SELECT gemba_organisation())));

DROP FUNCTION gemba_sites();
