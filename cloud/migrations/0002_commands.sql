-- The digest (CRC-32C) of the record `through`: a gateway that has another record under that number works on an old copy
-- of its data. NULL where nothing can be compared.
ALTER TABLE lanes ADD COLUMN tail bigint;

CREATE INDEX lanes_gateway ON lanes (gateway_id, lane, updated_at DESC);

-- What people tell gateways to do.
CREATE TABLE commands (
    gateway_id uuid NOT NULL REFERENCES gateways,
    -- Counts up, and is at least the milliseconds since 1970: a gateway that knows a number does not carry it out again, also
    -- when this database is a new one.
    number bigint NOT NULL,
    -- In the gateway's words.
    kind jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL REFERENCES users,
    expires_at timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN ('waiting', 'done', 'failed', 'expired', 'unknown')),
    answered_at timestamptz,
    -- What went wrong, or what was asked for.
    result text,
    PRIMARY KEY (gateway_id, number)
);

CREATE INDEX commands_waiting ON commands (gateway_id, number) WHERE state = 'waiting';
