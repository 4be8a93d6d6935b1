-- The tables of onefold.
--
-- Every primary key and unique index starts with project_id and no foreign key crosses tables, so that the same schema
-- runs on one PostgreSQL and on a cluster distributed by project_id. Text that is compared or ordered is COLLATE "C":
-- byte order, the same on every machine. Free-form data is json, not jsonb: it keeps every number as it was told and
-- never grows beyond what was measured. Moments are those of the database's clock unless named event_time.

-- A project: the world its profiles, events and devices live in.
CREATE TABLE projects (
    project_id text COLLATE "C" NOT NULL,
    identifier_type text NOT NULL CHECK (identifier_type IN ('EMAIL', 'USER_ID', 'HYBRID')),
    region text NOT NULL CHECK (region IN ('US', 'EU')),
    event_merging_enabled boolean NOT NULL DEFAULT true,
    -- The project whose key made it; null for one made by the command line.
    creator_project_id text COLLATE "C",
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
    data_fields json NOT NULL DEFAULT '{}',
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
    -- Where the row came from: of an anonymous_id its subject, of an identifier left by a merge the profile that had it.
    origin_id uuid,
    -- Of an identifier left by a merge: until when it leads to the profile. One whose time is over counts as free.
    redirect_end_time timestamptz,
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
-- origin_id says where the event came from (a subject or a profile), if it was not received for this person.
CREATE TABLE events (
    project_id text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    event_time timestamptz NOT NULL CHECK (event_time >= '1970-01-01 00:00Z' AND event_time < '2100-01-03 00:00Z'),
    event_id text COLLATE "C" NOT NULL,
    receive_time timestamptz NOT NULL,
    kind smallint NOT NULL,
    was_anonymous boolean NOT NULL DEFAULT false,
    origin_id uuid,
    name text COLLATE "C" NOT NULL,
    anonymous_id text COLLATE "C",
    data json NOT NULL,
    PRIMARY KEY (project_id, profile_id, event_time, event_id)
);

-- What came from elsewhere, to find it again when a merge is undone.
CREATE INDEX events_by_origin ON events (project_id, profile_id, origin_id, event_time, event_id)
WHERE origin_id IS NOT NULL;

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

-- The merge ledger. kind: ASSOCIATION (an anonymous_id's events to a person), PROFILE (a profile into another one) or
-- CONVERSION (a profile renamed in place).
CREATE TABLE merges (
    project_id text COLLATE "C" NOT NULL,
    merge_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('ASSOCIATION', 'PROFILE', 'CONVERSION')),
    target_profile_id uuid NOT NULL,
    source_profile_id uuid,
    anonymous_id text COLLATE "C",
    -- Everything that belonged to the source then: its own id or subject, and those of what it had got by merges before.
    origin_ids uuid [] NOT NULL,
    create_time timestamptz NOT NULL,
    key_id text NOT NULL DEFAULT '',
    -- What is needed to undo a merge of profiles; goes after 30 days, or when the person is forgotten.
    snapshot json,
    source_fields text [] NOT NULL DEFAULT '{}',
    target_fields text [] NOT NULL DEFAULT '{}',
    merged_arrays text [] NOT NULL DEFAULT '{}',
    device_count integer NOT NULL DEFAULT 0,
    settle_time timestamptz,
    undo_time timestamptz,
    -- What the worker moved, and what arrived during the grace: apart, so that a call never waits for a worker's chunk.
    moved_event_count bigint NOT NULL DEFAULT 0,
    moved_oldest_event_time timestamptz,
    late_event_count bigint NOT NULL DEFAULT 0,
    late_oldest_event_time timestamptz,
    PRIMARY KEY (project_id, merge_id)
);
CREATE INDEX merges_of_target ON merges (project_id, target_profile_id, merge_id);
-- Retention asks for these two.
CREATE INDEX merges_with_snapshot ON merges (create_time) WHERE snapshot IS NOT NULL;
CREATE INDEX identifiers_left_by_merges ON identifiers (redirect_end_time) WHERE redirect_end_time IS NOT NULL;
CREATE INDEX merges_of_source ON merges (project_id, source_profile_id, merge_id);

-- Events that belong to somebody else than where they lie. The contents of a container (a profile's rows in events, or a
-- subject's in anonymous_events) are the owner's: all of them, or, with origin_ids, those that came from there. Reads look
-- through; a worker moves the rows to the owner, and deletes the entry when nothing can be left behind. An entry without
-- an owner is a person who was forgotten: its rows are erased.
CREATE TABLE moves (
    project_id text COLLATE "C" NOT NULL,
    move_id uuid NOT NULL,
    merge_id uuid,
    -- The merges that what is moved counts for: the one that made the entry, and those that handed it over.
    counted_merge_ids uuid [] NOT NULL DEFAULT '{}',
    container_profile_id uuid,
    container_subject_id uuid,
    origin_ids uuid [],
    owner_profile_id uuid,
    owner_subject_id uuid,
    -- Only rows received after the one and until the other, and only rows that happened after (an anonymous event's 30 days).
    window_start_time timestamptz NOT NULL DEFAULT '-infinity',
    window_end_time timestamptz NOT NULL DEFAULT 'infinity',
    alive_after timestamptz NOT NULL DEFAULT '-infinity',
    create_time timestamptz NOT NULL DEFAULT now(),
    -- When a worker first saw the entry committed. No row can be written behind its back later than 15 s after that.
    first_pass_time timestamptz,
    PRIMARY KEY (project_id, move_id),
    CHECK ((container_profile_id IS NULL) <> (container_subject_id IS NULL)),
    CHECK (owner_profile_id IS NULL OR owner_subject_id IS NULL)
);
CREATE INDEX moves_of_owner_profile ON moves (project_id, owner_profile_id);
CREATE INDEX moves_of_owner_subject ON moves (project_id, owner_subject_id);
CREATE INDEX moves_of_container_profile ON moves (project_id, container_profile_id);
CREATE INDEX moves_of_container_subject ON moves (project_id, container_subject_id);
-- Retention asks for the earliest event that a move out of anonymous_events still wants.
CREATE INDEX moves_of_subjects_by_age ON moves (alive_after) WHERE container_subject_id IS NOT NULL;

-- Each profile's copy of a device. operation_number orders registrations and disables of one token.
CREATE TABLE devices (
    project_id text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    token text COLLATE "C" NOT NULL,
    platform smallint NOT NULL,
    application_name text NOT NULL,
    data_fields json NOT NULL DEFAULT '{}',
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

CREATE INDEX token_disables_ended ON token_disables (finish_time) WHERE finish_time IS NOT NULL;

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
    -- Whose data the answer holds: it goes when one of them is forgotten.
    profile_ids uuid [] NOT NULL DEFAULT '{}',
    PRIMARY KEY (project_id, request_id)
);
CREATE INDEX requests_of_profile ON requests USING gin (profile_ids);
CREATE INDEX requests_by_age ON requests USING brin (create_time);

-- Identifiers that must not come back: HMAC-SHA-256, keyed by a secret of the server. One forget_id per ForgetProfile.
CREATE TABLE forgotten (
    project_id text COLLATE "C" NOT NULL,
    hash bytea NOT NULL,
    kind smallint NOT NULL,
    forget_id uuid NOT NULL,
    forget_time timestamptz NOT NULL,
    PRIMARY KEY (project_id, hash)
);
CREATE INDEX forgotten_by_call ON forgotten (project_id, forget_id);

-- Secrets that every server of this database must share, when the environment does not give them.
CREATE TABLE server_secrets (
    name text COLLATE "C" NOT NULL,
    secret bytea NOT NULL,
    PRIMARY KEY (name)
);
INSERT INTO server_secrets (name, secret)
SELECT 'forgotten', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex');
