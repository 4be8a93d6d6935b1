-- Events that must not trigger anything. Those that are there may.
ALTER TABLE events
ADD COLUMN suppress_triggers boolean NOT NULL DEFAULT false;
ALTER TABLE anonymous_events
ADD COLUMN suppress_triggers boolean NOT NULL DEFAULT false;

-- Events sent to an address that need not be anybody's. They belong to nobody, whoever has the address.
CREATE TABLE invite_events (
    project_id text COLLATE "C" NOT NULL,
    recipient text COLLATE "C" NOT NULL,
    event_time timestamptz NOT NULL CHECK (event_time >= '1970-01-01 00:00Z' AND event_time < '2100-01-03 00:00Z'),
    event_id text COLLATE "C" NOT NULL,
    receive_time timestamptz NOT NULL,
    kind smallint NOT NULL,
    name text COLLATE "C" NOT NULL,
    suppress_triggers boolean NOT NULL DEFAULT false,
    data json NOT NULL,
    PRIMARY KEY (project_id, recipient, event_time, event_id)
);

-- A third kind of container: the invites sent to an address, which are erased when it is forgotten. An intent of its own
-- kind belongs to such an entry, so that a worker which does not know the column leaves it alone.
ALTER TABLE moves
ADD COLUMN container_recipient text COLLATE "C",
DROP CONSTRAINT moves_check,
ADD CONSTRAINT moves_have_one_container
CHECK (num_nonnulls(container_profile_id, container_subject_id, container_recipient) = 1);
CREATE INDEX moves_of_container_recipient ON moves (project_id, container_recipient)
WHERE container_recipient IS NOT NULL;

-- When the event happened that shoppingCartItems stands as of; an older one, told later, does not change the cart.
ALTER TABLE profiles
ADD COLUMN cart_event_time timestamptz;
