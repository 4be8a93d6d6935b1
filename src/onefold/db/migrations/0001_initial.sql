-- The tables of onefold.
--
-- Every primary key and unique index starts with project_id and no foreign key crosses tables, so that the same schema
-- runs on one PostgreSQL and on a cluster distributed by project_id. Text that is compared or ordered is COLLATE "C":
-- byte order, the same on every machine. Moments are those of the database's clock unless named event_time.

-- A project: the world its profiles, events and devices live in.
CREATE TABLE projects (
    project_id text COLLATE "C" NOT NULL,
    identifier_type text NOT NULL CHECK (identifier_type IN ('EMAIL', 'USER_ID', 'HYBRID')),
    region text NOT NULL CHECK (region IN ('US', 'EU')),
    event_merging_enabled boolean NOT NULL DEFAULT true,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id),
    CHECK (NOT (region = 'EU' AND identifier_type = 'EMAIL'))
);

-- A key of a project. Only the SHA-256 of its secret is kept.
CREATE TABLE api_keys (
    project_id text COLLATE "C" NOT NULL,
    key_id text COLLATE "C" NOT NULL,
    secret_hash bytea NOT NULL,
    scopes text [] NOT NULL,
    display_name text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz,
    revoke_time timestamptz,
    PRIMARY KEY (project_id, key_id)
);
-- A call says only its key: this is the one look-up that cannot name the project.
CREATE INDEX api_keys_by_id ON api_keys (key_id);

-- A person. email and user_id are copies for reading; who owns an identifier is decided in identifiers.
CREATE TABLE profiles (
    project_id text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    email text COLLATE "C",
    user_id text COLLATE "C",
    data_fields jsonb NOT NULL DEFAULT '{}',
    is_unknown boolean NOT NULL DEFAULT false,
    signup_source smallint NOT NULL,
    signup_time timestamptz NOT NULL DEFAULT now(),
    profile_update_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, profile_id),
    CHECK (email IS NOT NULL OR user_id IS NOT NULL)
);

-- The one place where an identifier leads to a profile. kind: 1 email, 2 user_id, 3 anonymous_id. An exclusive row is
-- the only one of its kind and value; others may share theirs (user_id in EMAIL projects, email in USER_ID projects),
-- and profile_id, a UUIDv7, tells the oldest holder.
CREATE TABLE identifiers (
    project_id text COLLATE "C" NOT NULL,
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 3),
    value text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    exclusive boolean NOT NULL,
    -- Of an anonymous_id: the ledger entry of its link, when it was made, and until when arriving events follow it.
    merge_id uuid,
    link_time timestamptz,
    grace_end_time timestamptz,
    PRIMARY KEY (project_id, kind, value, profile_id),
    CHECK ((kind = 3) = (link_time IS NOT NULL AND grace_end_time IS NOT NULL AND merge_id IS NOT NULL))
);
CREATE UNIQUE INDEX identifiers_exclusive ON identifiers (project_id, kind, value) WHERE exclusive;
CREATE INDEX identifiers_of_profile ON identifiers (project_id, profile_id);

-- A person's events. The primary key is the timeline: one index serves every page. kind is the number of EventKind.
-- merge_id is the merge that brought the event to this person, where one did.
CREATE TABLE events (
    project_id text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    event_time timestamptz NOT NULL CHECK (event_time >= '1970-01-01 00:00Z' AND event_time < '2100-01-03 00:00Z'),
    event_id text COLLATE "C" NOT NULL,
    receive_time timestamptz NOT NULL,
    kind smallint NOT NULL,
    was_anonymous boolean NOT NULL DEFAULT false,
    merge_id uuid,
    name text COLLATE "C" NOT NULL,
    anonymous_id text COLLATE "C",
    data json NOT NULL,
    PRIMARY KEY (project_id, profile_id, event_time, event_id)
);

-- Events of anonymous ids that nobody is known to be. subject_id stands for (project_id, anonymous_id): 16 bytes in the
-- key instead of up to 256. One partition a day of event_time, so that the 30 days end by DROP, never by DELETE.
CREATE TABLE anonymous_events (
    project_id text COLLATE "C" NOT NULL,
    subject_id uuid NOT NULL,
    event_time timestamptz NOT NULL CHECK (event_time >= '1970-01-01 00:00Z' AND event_time < '2100-01-03 00:00Z'),
    event_id text COLLATE "C" NOT NULL,
    receive_time timestamptz NOT NULL,
    kind smallint NOT NULL,
    name text COLLATE "C" NOT NULL,
    anonymous_id text COLLATE "C" NOT NULL,
    data json NOT NULL,
    PRIMARY KEY (project_id, subject_id, event_time, event_id)
) PARTITION BY RANGE (event_time);
-- Partitions are made ahead; should that ever fail, inserts land here instead of failing too.
CREATE TABLE anonymous_events_default PARTITION OF anonymous_events DEFAULT;

-- Event ids that callers gave, for 35 days. Apart from the events, so that they hold across merges and partitions.
CREATE TABLE event_ids (
    project_id text COLLATE "C" NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    body_hash bytea NOT NULL,
    receive_time timestamptz NOT NULL,
    PRIMARY KEY (project_id, event_id)
);
CREATE INDEX event_ids_by_age ON event_ids USING brin (receive_time);

-- The merge ledger. While settle_time is null, reads of the target look through to the source's rows that are not moved
-- yet. kind: ASSOCIATION (an anonymous_id's events to a person).
CREATE TABLE merges (
    project_id text COLLATE "C" NOT NULL,
    merge_id uuid NOT NULL,
    kind text NOT NULL,
    target_profile_id uuid NOT NULL,
    anonymous_id text COLLATE "C",
    subject_id uuid,
    create_time timestamptz NOT NULL,
    window_end_time timestamptz NOT NULL,
    -- When a worker first saw the merge committed. No row can be written behind its back later than 15 s after that.
    first_pass_time timestamptz,
    settle_time timestamptz,
    -- What the worker moved, and what arrived during the grace: apart, so that a call never waits for a worker's chunk.
    moved_event_count bigint NOT NULL DEFAULT 0,
    moved_oldest_event_time timestamptz,
    late_event_count bigint NOT NULL DEFAULT 0,
    late_oldest_event_time timestamptz,
    PRIMARY KEY (project_id, merge_id)
);
CREATE INDEX merges_open ON merges (project_id, target_profile_id) WHERE settle_time IS NULL;
CREATE INDEX merges_of_target ON merges (project_id, target_profile_id, create_time);
-- Retention asks for the oldest open merge of all.
CREATE INDEX merges_open_by_age ON merges (create_time) WHERE settle_time IS NULL;

-- Each profile's copy of a device. operation_number orders registrations and disables of one token.
CREATE TABLE devices (
    project_id text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    token text COLLATE "C" NOT NULL,
    platform smallint NOT NULL,
    application_name text NOT NULL,
    data_fields jsonb NOT NULL DEFAULT '{}',
    endpoint_enabled boolean NOT NULL,
    operation_number bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (project_id, profile_id, token)
) WITH (fillfactor = 80);
CREATE INDEX devices_by_token ON devices (project_id, token, profile_id);

-- Numbers handed out under the token's lock, so that their order is the order of the commits.
CREATE SEQUENCE operation_numbers;

-- A token disabled for all its holders. While finish_time is null, reads apply it to copies with a lower number.
CREATE TABLE token_disables (
    project_id text COLLATE "C" NOT NULL,
    disable_id uuid NOT NULL,
    token text COLLATE "C" NOT NULL,
    operation_number bigint NOT NULL,
    disabled_count bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    finish_time timestamptz,
    PRIMARY KEY (project_id, disable_id)
);
CREATE INDEX token_disables_open ON token_disables (project_id, token) WHERE finish_time IS NULL;

-- Work that a commit left to the workers. A row lives until its work is done; nothing else remembers it.
CREATE TABLE intents (
    project_id text COLLATE "C" NOT NULL,
    intent_id uuid NOT NULL,
    kind text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    due_time timestamptz NOT NULL DEFAULT now(),
    attempt_count integer NOT NULL DEFAULT 0,
    lease_token uuid,
    lease_end_time timestamptz,
    stuck_time timestamptz,
    last_error text,
    PRIMARY KEY (project_id, intent_id)
);
CREATE INDEX intents_due ON intents (due_time) WHERE stuck_time IS NULL;

-- Answers by request_id, for 24 hours.
CREATE TABLE requests (
    project_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    body_hash bytea NOT NULL,
    answer bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, request_id)
);
CREATE INDEX requests_by_age ON requests USING brin (create_time);
