-- Plans of preventive maintenance: what makes tickets by itself.
CREATE TABLE plans (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    machine_id uuid NOT NULL REFERENCES machines,
    -- What its tickets say.
    title text NOT NULL,
    description text NOT NULL,
    priority text NOT NULL CHECK (priority IN ('low', 'medium', 'high', 'urgent')),
    checklist text[] NOT NULL,
    estimate_minutes integer CHECK (estimate_minutes >= 0),
    assignee_id uuid REFERENCES users,
    -- What makes it due: by calendar, …
    every smallint CHECK (every > 0),
    unit text CHECK (unit IN ('day', 'week', 'month')),
    starts_on date,
    -- Minutes of the site's day.
    at_min smallint CHECK (at_min BETWEEN 0 AND 1439),
    -- Counted from when the one before was done, and not from `starts_on`.
    from_completion boolean,
    -- … by hours that the machine ran since then, or since the ticket before was done, whichever is later, …
    every_h integer CHECK (every_h > 0),
    counted_from timestamptz,
    -- … or by its health.
    health_below real CHECK (health_below > 0 AND health_below <= 100),
    health_for_s integer CHECK (health_for_s >= 0),
    CHECK (num_nonnulls(every, every_h, health_below) = 1),
    CHECK (num_nonnulls(every, unit, starts_on, at_min, from_completion) IN (0, 5)),
    CHECK ((every_h IS NULL) = (counted_from IS NULL)),
    CHECK ((health_below IS NULL) = (health_for_s IS NULL)),
    -- How long before it is due its ticket is made: hours, of the calendar or of running.
    lead_h integer NOT NULL CHECK (lead_h >= 0),
    enabled boolean NOT NULL,
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    updated_at timestamptz NOT NULL,
    -- Where it stands. The day, by the site's clocks, for which the latest ticket was made.
    last_due_on date,
    last_ticket_id uuid REFERENCES tickets,
    -- Since when the machine's health has been too low.
    below_since timestamptz
);

CREATE INDEX plans_machine ON plans (machine_id);
CREATE INDEX plans_site ON plans (site_id, id DESC);

-- Which plan made it.
ALTER TABLE tickets ADD COLUMN plan_id uuid REFERENCES plans ON DELETE SET NULL;
CREATE INDEX tickets_plan ON tickets (plan_id, id DESC) WHERE plan_id IS NOT NULL;

-- Reliability is read by when tickets were made, and costs booked.
CREATE INDEX tickets_corrective ON tickets (created_at) WHERE kind = 'corrective';
CREATE INDEX ticket_costs_created ON ticket_costs (created_at);

GRANT SELECT, INSERT, DELETE ON plans TO gemba_app;
GRANT UPDATE (title, description, priority, checklist, estimate_minutes, assignee_id, every, unit, starts_on, at_min,
              from_completion, every_h, counted_from, health_below, health_for_s, lead_h, enabled, updated_at, below_since)
    ON plans TO gemba_app;
ALTER TABLE plans ENABLE ROW LEVEL SECURITY;
CREATE POLICY scope ON plans TO gemba_app USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
