-- Visitors who become unknown profiles.

-- Profile-creation criteria. root is the tree as JSON; version counts its changes.
CREATE TABLE criteria (
    project_id text COLLATE "C" NOT NULL,
    criterion_id uuid NOT NULL,
    name text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    root json NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, criterion_id)
);

-- What a visitor, or a person, allowed or took back. One row each: when consent was last given, with what was told then,
-- and when it was last taken back. holder_id is a profile, or stands for a visitor or for an unknown profile to come.
CREATE TABLE consents (
    project_id text COLLATE "C" NOT NULL,
    holder_id uuid NOT NULL,
    consent_time timestamptz,
    withdraw_time timestamptz,
    is_known boolean NOT NULL,
    device json NOT NULL DEFAULT '{}',
    record_time timestamptz NOT NULL DEFAULT now(),
    -- Whether holder_id is a profile; a visitor's goes after a year.
    is_profiles boolean NOT NULL,
    PRIMARY KEY (project_id, holder_id),
    CHECK (consent_time IS NOT NULL OR withdraw_time IS NOT NULL)
);
CREATE INDEX consents_of_visitors ON consents (record_time) WHERE NOT is_profiles;

-- Events of visitors that a worker has still to look at: one row for each transaction that stored some, with their keys.
-- An element without a key asks to look at everything that is stored of the visitor.
CREATE TABLE activation_notes (
    project_id text COLLATE "C" NOT NULL,
    note_id uuid NOT NULL DEFAULT uuidv7(),
    anonymous_ids text [] NOT NULL,
    event_times timestamptz [] NOT NULL,
    event_ids text [] NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (project_id, note_id)
);

-- How far a visitor is: for each criterion how many events match its leaves, as counted under a certain set of criteria.
-- An event that was counted and has had its 30 days makes the counts worthless; oldest_event_time tells. The snapshot says
-- which events were there when all of them were counted: a note that comes with one of those counts nothing any more.
CREATE TABLE activation_visitors (
    project_id text COLLATE "C" NOT NULL,
    subject_id uuid NOT NULL,
    criteria_key text NOT NULL DEFAULT '',
    counts json NOT NULL DEFAULT '{}',
    oldest_event_time timestamptz,
    counted_time timestamptz,
    counted_snapshot text NOT NULL DEFAULT '',
    -- The last day with an event. A day, not a moment: while it stays the same, no index changes with an event.
    active_day timestamptz NOT NULL DEFAULT date_trunc('day', now()),
    PRIMARY KEY (project_id, subject_id)
) WITH (fillfactor = 70);
CREATE INDEX activation_visitors_by_age ON activation_visitors (active_day);

-- How far a worker is that goes through all visitors of a project because somebody asked for it. The intent has the same id.
CREATE TABLE activation_reviews (
    project_id text COLLATE "C" NOT NULL,
    review_id uuid NOT NULL,
    after_subject_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    PRIMARY KEY (project_id, review_id)
);

-- A batch of events that leaves a note asks whether an intent is there; a worker, whether there are any.
CREATE INDEX intents_to_activate ON intents (project_id) WHERE kind = 'ACTIVATE';
