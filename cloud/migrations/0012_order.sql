-- Machines in the order in which they are listed: a page of them is a few look-ups.
CREATE INDEX machines_shown ON machines (coalesce(display_name, name), id) WHERE merged_into IS NULL;
