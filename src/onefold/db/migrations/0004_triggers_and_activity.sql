-- Numbers of triggers, handed out when one is recorded. A transaction that has taken one holds the lock of the table
-- below until it ends; so a reader who sees nobody hold it any more knows that all numbers until then are decided.
CREATE SEQUENCE trigger_numbers;

-- The events that may set something off, in the order in which they are told: an outbox, written in the transaction of
-- the event itself. Only what names the event, not what it holds: that is read when the trigger is told, from where the
-- event lies by then, and is gone when the event is. mark: 1 live, 2 backfilled, 3 merged.
CREATE TABLE triggers (
    project_id text COLLATE "C" NOT NULL,
    trigger_number bigint NOT NULL DEFAULT nextval('trigger_numbers'),
    mark smallint NOT NULL CHECK (mark BETWEEN 1 AND 3),
    -- Where the event was put: a person's timeline, or the address that an invite was sent to.
    profile_id uuid,
    recipient text COLLATE "C",
    event_time timestamptz NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, trigger_number),
    CHECK ((profile_id IS NULL) <> (recipient IS NULL))
);
-- An event has one trigger; one that triggers again goes to the end of the order. Erasing finds it here too.
CREATE UNIQUE INDEX triggers_of_event ON triggers (project_id, event_id, event_time);
CREATE INDEX triggers_by_age ON triggers USING brin (create_time);

-- Up to which number triggers were removed because their time was over: a cursor before it has missed some.
CREATE TABLE trigger_purges (
    project_id text COLLATE "C" NOT NULL,
    purged_number bigint NOT NULL,
    PRIMARY KEY (project_id)
);

-- Where an event may lie by now: with the profile that its own was merged into, or, after an undo, back with the source.
CREATE INDEX merges_of_profiles ON merges (project_id, target_profile_id) WHERE kind = 'PROFILE';

-- What happened and nothing else remembers, for the activity log; the rest of the log is read from where it is kept
-- anyway. kind is the number of ActivityKind: 5 a person forgotten, 6 a device registered, 7 a device disabled. A token
-- disabled for all its holders is one row without a profile. Rows stay with their profile: a merge rewrites nothing.
CREATE TABLE activities (
    project_id text COLLATE "C" NOT NULL,
    activity_time timestamptz NOT NULL,
    activity_id uuid NOT NULL DEFAULT uuidv7(),
    kind smallint NOT NULL CHECK (kind BETWEEN 5 AND 7),
    profile_id uuid,
    token text COLLATE "C",
    platform smallint,
    -- Of a person forgotten: whether the identifiers are blocked.
    identifiers_blocked boolean NOT NULL DEFAULT false,
    PRIMARY KEY (project_id, activity_time, activity_id),
    CHECK ((kind = 5) = (token IS NULL)),
    CHECK (profile_id IS NOT NULL OR kind = 7)
);
CREATE INDEX activities_of_profile ON activities (project_id, profile_id, activity_time, activity_id)
WHERE profile_id IS NOT NULL;
CREATE INDEX activities_of_token ON activities (project_id, token, activity_time, activity_id)
WHERE profile_id IS NULL;

-- When a profile that was merged into another one had been made, and by which call; its own row is gone.
ALTER TABLE merges
ADD COLUMN source_create_time timestamptz,
ADD COLUMN source_signup_source smallint;
UPDATE merges
SET
    source_create_time = (snapshot #>> '{source,create_time}')::timestamptz,
    source_signup_source = (snapshot #>> '{source,signup_source}')::smallint
WHERE kind = 'PROFILE' AND snapshot IS NOT NULL;

-- Pages of the activity log, newest first: of a person, and of a project. Partial by a condition that always holds: only
-- a statement that says it too may use the index. Without it one that asks for a person's rows, planned while the tables
-- were small, could walk over a whole project in their order.
CREATE INDEX merges_of_target_by_time ON merges (project_id, target_profile_id, create_time, merge_id)
WHERE create_time > '-infinity';
CREATE INDEX merges_by_time ON merges (project_id, create_time, merge_id) WHERE create_time > '-infinity';
CREATE INDEX merges_by_source_time ON merges (project_id, source_create_time, source_profile_id)
WHERE source_create_time > '-infinity' AND undo_time IS NULL;
CREATE INDEX profiles_by_time ON profiles (project_id, create_time, profile_id) WHERE create_time > '-infinity';
CREATE INDEX events_by_time ON events (project_id, event_time, event_id) WHERE event_time > '-infinity';
CREATE INDEX anonymous_events_by_time ON anonymous_events (project_id, event_time, event_id)
WHERE event_time > '-infinity';

-- Forgetting takes a visitor's id out of associations that were undone, too.
CREATE INDEX merges_undone_of_visitor ON merges (project_id, anonymous_id)
WHERE undo_time IS NOT NULL AND anonymous_id IS NOT NULL;
