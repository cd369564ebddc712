-- Tickets (work orders of a maintenance system): what people do about a machine, what it cost, and what it was.

-- ISO 4217; and what an hour of work costs where nobody says otherwise, in the currency's minor unit (cents).
ALTER TABLE organisations
    ADD COLUMN currency text NOT NULL DEFAULT 'EUR' CHECK (currency ~ '^[A-Z]{3}$'),
    ADD COLUMN labour_rate_minor bigint NOT NULL DEFAULT 0 CHECK (labour_rate_minor >= 0);

-- Numbers that people can say count up for each organisation, without gaps.
CREATE TABLE ticket_numbers (
    organisation_id uuid PRIMARY KEY REFERENCES organisations,
    last bigint NOT NULL
);

CREATE TABLE tickets (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL,
    site_id uuid NOT NULL,
    FOREIGN KEY (organisation_id, site_id) REFERENCES sites (organisation_id, id),
    number bigint NOT NULL,
    -- Both NULL: of the site as a whole.
    machine_id uuid REFERENCES machines,
    area_id uuid,
    FOREIGN KEY (site_id, area_id) REFERENCES areas (site_id, id) ON DELETE SET NULL (area_id),
    -- What it was made from.
    incident_id uuid REFERENCES incidents,
    kind text NOT NULL CHECK (kind IN ('corrective', 'preventive', 'inspection')),
    priority text NOT NULL CHECK (priority IN ('low', 'medium', 'high', 'urgent')),
    title text NOT NULL,
    description text NOT NULL DEFAULT '',
    due_at timestamptz,
    assignee_id uuid REFERENCES users,
    state text NOT NULL CHECK (state IN ('open', 'assigned', 'in_progress', 'on_hold', 'done', 'closed', 'cancelled')),
    state_since timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    -- NULL: made by a plan.
    created_by uuid REFERENCES users,
    updated_at timestamptz NOT NULL,
    -- When work first began; when it was last done, and closed. What was reopened is neither done nor closed.
    started_at timestamptz,
    done_at timestamptz,
    closed_at timestamptz,
    closed_by uuid REFERENCES users,
    reopened integer NOT NULL DEFAULT 0,
    -- Of the organisation when it was made: all its amounts are in it.
    currency text NOT NULL,
    estimate_minutes integer CHECK (estimate_minutes >= 0),
    estimate_minor bigint CHECK (estimate_minor >= 0),
    -- Said at closing. The code of a failure mode (ISO 14224:2016, annex B); NULL: none failed.
    failure_mode text,
    cause text NOT NULL DEFAULT '',
    remedy text NOT NULL DEFAULT '',
    -- Was the alarm right? NULL where there was none, or nobody has closed it yet.
    alarm_correct text CHECK (alarm_correct IN ('yes', 'no', 'unknown')),
    UNIQUE (organisation_id, number),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL)),
    CHECK (state NOT IN ('assigned', 'in_progress', 'on_hold') OR assignee_id IS NOT NULL)
);

-- An incident has one ticket, unless that was cancelled.
CREATE UNIQUE INDEX tickets_one_of_incident ON tickets (incident_id) WHERE incident_id IS NOT NULL AND state <> 'cancelled';
CREATE INDEX tickets_incident ON tickets (incident_id) WHERE incident_id IS NOT NULL;
CREATE INDEX tickets_site ON tickets (site_id, id DESC);
CREATE INDEX tickets_machine ON tickets (machine_id, id DESC) WHERE machine_id IS NOT NULL;
CREATE INDEX tickets_assignee ON tickets (assignee_id, id DESC) WHERE assignee_id IS NOT NULL;
CREATE INDEX tickets_due ON tickets (due_at) WHERE due_at IS NOT NULL AND state NOT IN ('done', 'closed', 'cancelled');
-- Areas are deleted, and forget their tickets.
CREATE INDEX tickets_area ON tickets (site_id, area_id) WHERE area_id IS NOT NULL;

-- The history of a ticket's states; it is only appended to.
CREATE TABLE ticket_steps (
    id uuid PRIMARY KEY,
    ticket_id uuid NOT NULL REFERENCES tickets,
    at timestamptz NOT NULL,
    -- NULL: a plan.
    by_id uuid REFERENCES users,
    -- NULL: it was made. The same as `to_state`: it was given to somebody else.
    from_state text,
    to_state text NOT NULL,
    -- Whose it is from then on.
    assignee_id uuid REFERENCES users,
    reason text NOT NULL DEFAULT ''
);

CREATE INDEX ticket_steps_ticket ON ticket_steps (ticket_id, at, id);

CREATE TABLE ticket_items (
    id uuid PRIMARY KEY,
    ticket_id uuid NOT NULL REFERENCES tickets,
    text text NOT NULL,
    done_at timestamptz,
    done_by uuid REFERENCES users,
    CHECK ((done_at IS NULL) = (done_by IS NULL))
);

CREATE INDEX ticket_items_ticket ON ticket_items (ticket_id, id);

CREATE TABLE ticket_comments (
    id uuid PRIMARY KEY,
    ticket_id uuid NOT NULL REFERENCES tickets,
    author_id uuid NOT NULL REFERENCES users,
    written_at timestamptz NOT NULL,
    text text NOT NULL
);

CREATE INDEX ticket_comments_ticket ON ticket_comments (ticket_id, id);

-- What a ticket cost in fact, in its currency's minor unit.
CREATE TABLE ticket_costs (
    id uuid PRIMARY KEY,
    ticket_id uuid NOT NULL REFERENCES tickets,
    kind text NOT NULL CHECK (kind IN ('labour', 'part', 'other')),
    -- Labour: who worked, how long, and at what rate an hour.
    user_id uuid REFERENCES users,
    minutes integer CHECK (minutes > 0),
    rate_minor bigint CHECK (rate_minor >= 0),
    text text NOT NULL DEFAULT '',
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    CHECK (num_nulls(user_id, minutes, rate_minor) = CASE WHEN kind = 'labour' THEN 0 ELSE 3 END)
);

CREATE INDEX ticket_costs_ticket ON ticket_costs (ticket_id, id);

-- Photos and files. The same content is there once in a ticket.
CREATE TABLE ticket_attachments (
    id uuid PRIMARY KEY,
    ticket_id uuid NOT NULL REFERENCES tickets,
    name text NOT NULL,
    -- Of the content, never of the name.
    media_type text NOT NULL,
    size integer NOT NULL,
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    UNIQUE (ticket_id, sha256)
);

-- Their bytes, in parts that are read one after the other. Photos are packed already.
CREATE TABLE ticket_attachment_parts (
    attachment_id uuid NOT NULL REFERENCES ticket_attachments ON DELETE CASCADE,
    part integer NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (attachment_id, part)
);
ALTER TABLE ticket_attachment_parts ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- What people said of an anomaly: it was one, or it was none; NULL: nothing yet. And the command that told its gateway.
ALTER TABLE anomalies
    ADD COLUMN labelled_real boolean,
    ADD COLUMN labelled_at timestamptz,
    ADD COLUMN labelled_by uuid REFERENCES users,
    ADD COLUMN label_gateway_id uuid,
    ADD COLUMN label_number bigint,
    ADD FOREIGN KEY (label_gateway_id, label_number) REFERENCES commands (gateway_id, number);

-- People are told of tickets as they are of incidents; the severity of a notice is its ticket's priority then.
ALTER TABLE notices
    ALTER COLUMN incident_id DROP NOT NULL,
    ADD COLUMN ticket_id uuid REFERENCES tickets,
    ADD CHECK (num_nonnulls(incident_id, ticket_id) = 1);

-- What the application may touch, and whose rows it sees (0004_access.sql).
GRANT SELECT, INSERT ON ticket_numbers, tickets, ticket_steps, ticket_items, ticket_comments, ticket_costs, ticket_attachments,
    ticket_attachment_parts TO gemba_app;
GRANT UPDATE (last) ON ticket_numbers TO gemba_app;
GRANT UPDATE (machine_id, area_id, kind, priority, title, description, due_at, assignee_id, state, state_since, updated_at,
              started_at, done_at, closed_at, closed_by, reopened, estimate_minutes, estimate_minor, failure_mode, cause, remedy,
              alarm_correct)
    ON tickets TO gemba_app;
GRANT UPDATE (done_at, done_by) ON ticket_items TO gemba_app;
GRANT DELETE ON ticket_items, ticket_costs, ticket_attachments TO gemba_app;
GRANT UPDATE (labelled_real, labelled_at, labelled_by, label_gateway_id, label_number) ON anomalies TO gemba_app;
GRANT UPDATE (currency, labour_rate_minor) ON organisations TO gemba_app;

ALTER TABLE ticket_numbers ENABLE ROW LEVEL SECURITY;
ALTER TABLE tickets ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_steps ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_comments ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_costs ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_attachments ENABLE ROW LEVEL SECURITY;
ALTER TABLE ticket_attachment_parts ENABLE ROW LEVEL SECURITY;
CREATE POLICY scope ON ticket_numbers TO gemba_app USING (organisation_id = (SELECT gemba_organisation()));
CREATE POLICY scope ON tickets TO gemba_app USING (site_id = ANY ((SELECT gemba_site_list())::uuid[]));
CREATE POLICY scope ON ticket_steps TO gemba_app
    USING (EXISTS (SELECT FROM tickets WHERE tickets.id = ticket_steps.ticket_id));
CREATE POLICY scope ON ticket_items TO gemba_app
    USING (EXISTS (SELECT FROM tickets WHERE tickets.id = ticket_items.ticket_id));
CREATE POLICY scope ON ticket_comments TO gemba_app
    USING (EXISTS (SELECT FROM tickets WHERE tickets.id = ticket_comments.ticket_id));
CREATE POLICY scope ON ticket_costs TO gemba_app
    USING (EXISTS (SELECT FROM tickets WHERE tickets.id = ticket_costs.ticket_id));
CREATE POLICY scope ON ticket_attachments TO gemba_app
    USING (EXISTS (SELECT FROM tickets WHERE tickets.id = ticket_attachments.ticket_id));
CREATE POLICY scope ON ticket_attachment_parts TO gemba_app
    USING (EXISTS (SELECT FROM ticket_attachments WHERE ticket_attachments.id = ticket_attachment_parts.attachment_id));

-- For tools that read the database themselves (README, "Other tools"): a row for each ticket.
CREATE VIEW tickets_v1 WITH (security_invoker = true) AS
SELECT o.name AS organisation, s.name AS site, g.name AS gateway, coalesce(m.display_name, m.name) AS machine, m.id AS machine_id,
       t.created_at AS time, t.number, t.kind, t.priority, t.state, t.title, assignee.name AS assignee, t.incident_id, t.due_at,
       t.started_at, t.done_at, t.closed_at, t.reopened, worked.in_progress_s, worked.on_hold_s, t.failure_mode, t.cause, t.remedy,
       t.alarm_correct, t.currency, t.estimate_minor, costs.labour_minutes, costs.labour_minor, costs.part_minor, costs.other_minor
FROM tickets t
JOIN sites s ON s.id = t.site_id JOIN organisations o ON o.id = t.organisation_id
LEFT JOIN machines own ON own.id = t.machine_id
LEFT JOIN machines m ON m.id = coalesce(own.merged_into, own.id)
LEFT JOIN gateways g ON g.id = own.gateway_id
LEFT JOIN users assignee ON assignee.id = t.assignee_id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(lasted) FILTER (WHERE to_state = 'in_progress'), 0) AS in_progress_s,
           coalesce(sum(lasted) FILTER (WHERE to_state = 'on_hold'), 0) AS on_hold_s
    FROM (SELECT to_state, extract(epoch FROM lead(at) OVER (ORDER BY at, id) - at) AS lasted
          FROM ticket_steps WHERE ticket_id = t.id) steps
) worked
CROSS JOIN LATERAL (
    SELECT coalesce(sum(minutes), 0) AS labour_minutes,
           coalesce(sum(amount_minor) FILTER (WHERE kind = 'labour'), 0)::bigint AS labour_minor,
           coalesce(sum(amount_minor) FILTER (WHERE kind = 'part'), 0)::bigint AS part_minor,
           coalesce(sum(amount_minor) FILTER (WHERE kind = 'other'), 0)::bigint AS other_minor
    FROM ticket_costs WHERE ticket_id = t.id
) costs;
GRANT SELECT ON tickets_v1 TO gemba_app;
