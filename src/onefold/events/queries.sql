-- name: claim_event_ids
-- Remembers the ids that callers gave; a row comes back for each that is new, or that was last used more than 35 days ago.
-- In order, so that two batches with the same ids wait for each other and never deadlock.
INSERT INTO event_ids (project_id, event_id, body_hash, receive_time)
SELECT :project_id, new.event_id, new.body_hash, now()
FROM unnest(:event_ids::text [], :body_hashes::bytea []) AS new (event_id, body_hash)
ORDER BY new.event_id
ON CONFLICT (project_id, event_id) DO UPDATE
SET body_hash = excluded.body_hash, receive_time = excluded.receive_time
WHERE event_ids.receive_time <= now() - :lifetime::interval
RETURNING event_id;

-- name: find_event_ids
-- What is known of ids that were taken.
SELECT event_id, body_hash, receive_time
FROM event_ids
WHERE project_id = :project_id AND event_id = ANY(:event_ids::text []);

-- name: release_event_ids
-- Gives back ids that this transaction claimed for events that were refused after all.
DELETE FROM event_ids
WHERE project_id = :project_id AND event_id = ANY(:event_ids::text []);

-- name: insert_events
-- A person's events; the keys of those that were stored. The conflict can only be an id and time used again after the id
-- was forgotten (35 days).
INSERT INTO events (
    project_id,
    profile_id,
    event_time,
    event_id,
    receive_time,
    kind,
    was_anonymous,
    origin_id,
    name,
    anonymous_id,
    suppress_triggers,
    data
)
SELECT
    :project_id,
    new.profile_id,
    new.event_time,
    new.event_id,
    now(),
    new.kind,
    new.origin_id IS NOT NULL,
    new.origin_id,
    new.name,
    new.anonymous_id,
    new.suppress_triggers,
    new.data
FROM
    unnest(
        :profile_ids::uuid [],
        :event_times::timestamptz [],
        :event_ids::text [],
        :kinds::smallint [],
        :origin_ids::uuid [],
        :names::text [],
        :anonymous_ids::text [],
        :suppress_triggers::boolean [],
        :data::json []
    ) AS new (profile_id, event_time, event_id, kind, origin_id, name, anonymous_id, suppress_triggers, data)
ON CONFLICT DO NOTHING
RETURNING profile_id, event_time, event_id;

-- name: insert_anonymous_events
-- Visitors' events. If wanted, with a note of their keys for a worker: whoever sees the note sees the events, so nothing
-- comes too late. In this statement, because one more would cost every batch a round trip. How the note always has an
-- intent, and nobody waits for anybody, says note_visitors.
WITH at_work AS (
    SELECT intents.intent_id
    FROM intents
    WHERE intents.project_id = :project_id AND intents.kind = 'ACTIVATE' AND intents.stuck_time IS NULL
    LIMIT 1
    FOR KEY SHARE SKIP LOCKED
),

added AS (
    INSERT INTO intents (project_id, intent_id, kind)
    SELECT :project_id, uuidv7(), 'ACTIVATE'
    WHERE :is_noted::boolean AND NOT EXISTS (SELECT FROM at_work)
),

noted AS (
    INSERT INTO activation_notes (project_id, anonymous_ids, event_times, event_ids)
    SELECT :project_id, :anonymous_ids::text [], :event_times::timestamptz [], :event_ids::text []
    WHERE :is_noted
)

INSERT INTO anonymous_events (
    project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, suppress_triggers, data
)
SELECT
    :project_id,
    new.subject_id,
    new.event_time,
    new.event_id,
    now(),
    new.kind,
    new.name,
    new.anonymous_id,
    new.suppress_triggers,
    new.data
FROM
    unnest(
        :subject_ids::uuid [],
        :event_times::timestamptz [],
        :event_ids::text [],
        :kinds::smallint [],
        :names::text [],
        :anonymous_ids::text [],
        :suppress_triggers::boolean [],
        :data::json []
    ) AS new (subject_id, event_time, event_id, kind, name, anonymous_id, suppress_triggers, data)
ON CONFLICT DO NOTHING;

-- name: are_being_erased
-- Whether invites to one of these addresses are being erased, those of this moment included: the transaction began before
-- the address was forgotten, or let go, and must begin again to know what holds.
SELECT EXISTS (
    SELECT FROM moves
    WHERE project_id = :project_id AND container_recipient = ANY(:recipients::text []) AND window_end_time >= now()
);

-- name: insert_invite_events
-- Invites; the keys of those that were stored. The conflict is the same as for a person's events.
INSERT INTO invite_events (
    project_id, recipient, event_time, event_id, receive_time, kind, name, suppress_triggers, data
)
SELECT
    :project_id,
    new.recipient,
    new.event_time,
    new.event_id,
    now(),
    new.kind,
    new.name,
    new.suppress_triggers,
    new.data
FROM
    unnest(
        :recipients::text [],
        :event_times::timestamptz [],
        :event_ids::text [],
        :kinds::smallint [],
        :names::text [],
        :suppress_triggers::boolean [],
        :data::json []
    ) AS new (recipient, event_time, event_id, kind, name, suppress_triggers, data)
ON CONFLICT DO NOTHING
RETURNING recipient, event_time, event_id;

-- name: note_visitors
-- Asks a worker to look at everything that is stored of visitors. One intent of the project is enough for all notes. Sharing
-- its key lets the worker go on with its lease, but not end it before this transaction has ended; and if it is just being
-- ended, there is another one. So neither waits for the other, and no note is left without an intent.
WITH at_work AS (
    SELECT intents.intent_id
    FROM intents
    WHERE intents.project_id = :project_id AND intents.kind = 'ACTIVATE' AND intents.stuck_time IS NULL
    LIMIT 1
    FOR KEY SHARE SKIP LOCKED
),

added AS (
    INSERT INTO intents (project_id, intent_id, kind)
    SELECT :project_id, uuidv7(), 'ACTIVATE'
    WHERE NOT EXISTS (SELECT FROM at_work)
)

INSERT INTO activation_notes (project_id, anonymous_ids, event_times, event_ids)
SELECT
    :project_id,
    :anonymous_ids::text [],
    array_fill(NULL::timestamptz, ARRAY[cardinality(:anonymous_ids)]),
    array_fill(NULL::text, ARRAY[cardinality(:anonymous_ids)]);

-- name: lock_ledger
-- Holds the ledger entries that late events are counted in, in order: two batches cannot deadlock over them.
SELECT merge_id
FROM merges
WHERE project_id = :project_id AND merge_id = ANY(:merge_ids::uuid [])
ORDER BY merge_id
FOR UPDATE;

-- name: count_late_events
-- Counts events that arrived during the grace of their link (A7).
UPDATE merges
SET
    late_event_count = merges.late_event_count + late.event_count,
    late_oldest_event_time = least(merges.late_oldest_event_time, late.oldest_event_time)
FROM
    unnest(:merge_ids::uuid [], :counts::bigint [], :oldest::timestamptz []) AS late (
        merge_id, event_count, oldest_event_time
    )
WHERE merges.project_id = :project_id AND merges.merge_id = late.merge_id;

-- name: list_events
-- One page of a person's timeline, newest first: the person's own rows, without those that a move is giving back to
-- somebody else, and what open moves say is the person's wherever it lies. One statement sees one moment, and a row is
-- moved in one transaction, so it is seen once. Each part reads at most a page by an index.
WITH open_moves AS (
    SELECT
        container_profile_id, container_subject_id, origin_ids, window_start_time, window_end_time, alive_after
    FROM moves
    WHERE project_id = :project_id AND owner_profile_id = :profile_id
),

own AS (
    SELECT
        event_time,
        event_id,
        receive_time,
        kind,
        was_anonymous AS was_anonymous,
        name,
        anonymous_id,
        data
    FROM events
    WHERE
        project_id = :project_id
        AND profile_id = :profile_id
        AND (
            origin_id = ANY(
                ARRAY(
                    SELECT unnest(moves.origin_ids)
                    FROM moves
                    WHERE moves.project_id = :project_id AND moves.container_profile_id = :profile_id
                )
            )
        ) IS NOT TRUE
        AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
        AND event_time >= :start_time::timestamptz
        AND (:names::text [] IS NULL OR name = ANY(:names::text []))
        AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
    ORDER BY event_time DESC, event_id DESC
    LIMIT :count::integer
),

-- Of profiles that were merged into the person: everything, without what is being given back from there.
from_profiles AS (
    SELECT
        source.event_time,
        source.event_id,
        source.receive_time,
        source.kind,
        source.was_anonymous,
        source.name,
        source.anonymous_id,
        source.data
    FROM open_moves
    CROSS JOIN LATERAL (
        SELECT
            event_time,
            event_id,
            receive_time,
            kind,
            was_anonymous AS was_anonymous,
            name,
            anonymous_id,
            data
        FROM events
        WHERE
            project_id = :project_id
            AND profile_id = open_moves.container_profile_id
            AND (
                origin_id = ANY(
                    ARRAY(
                        SELECT unnest(moves.origin_ids)
                        FROM moves
                        WHERE
                            moves.project_id = :project_id
                            AND moves.container_profile_id = open_moves.container_profile_id
                    )
                )
            ) IS NOT TRUE
            AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
            AND event_time >= :start_time::timestamptz
            AND (:names::text [] IS NULL OR name = ANY(:names::text []))
            AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
        ORDER BY event_time DESC, event_id DESC
        LIMIT :count::integer
    ) AS source
    WHERE open_moves.container_profile_id IS NOT NULL AND open_moves.origin_ids IS NULL
),

-- Of merges that were undone: what came from the person.
given_back AS (
    SELECT
        source.event_time,
        source.event_id,
        source.receive_time,
        source.kind,
        source.was_anonymous,
        source.name,
        source.anonymous_id,
        source.data
    FROM open_moves
    CROSS JOIN LATERAL unnest(open_moves.origin_ids) AS origin (origin_id)
    CROSS JOIN LATERAL (
        SELECT
            event_time,
            event_id,
            receive_time,
            kind,
            was_anonymous AS was_anonymous,
            name,
            anonymous_id,
            data
        FROM events
        WHERE
            project_id = :project_id
            AND profile_id = open_moves.container_profile_id
            AND origin_id = origin.origin_id
            AND event_time > open_moves.alive_after
            AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
            AND event_time >= :start_time::timestamptz
            AND (:names::text [] IS NULL OR name = ANY(:names::text []))
            AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
        ORDER BY event_time DESC, event_id DESC
        LIMIT :count::integer
    ) AS source
    WHERE open_moves.origin_ids IS NOT NULL
),

-- Of anonymous ids: what was received before the grace ended and was alive when the id was linked.
from_subjects AS (
    SELECT
        source.event_time,
        source.event_id,
        source.receive_time,
        source.kind,
        source.was_anonymous,
        source.name,
        source.anonymous_id,
        source.data
    FROM open_moves
    CROSS JOIN LATERAL (
        SELECT
            event_time,
            event_id,
            receive_time,
            kind,
            true AS was_anonymous,
            name,
            anonymous_id,
            data
        FROM anonymous_events
        WHERE
            project_id = :project_id
            AND subject_id = open_moves.container_subject_id
            AND receive_time > open_moves.window_start_time
            AND receive_time <= open_moves.window_end_time
            AND event_time > open_moves.alive_after
            AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
            AND event_time >= :start_time::timestamptz
            AND (:names::text [] IS NULL OR name = ANY(:names::text []))
            AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
        ORDER BY event_time DESC, event_id DESC
        LIMIT :count::integer
    ) AS source
    WHERE open_moves.container_subject_id IS NOT NULL
)

SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM own
UNION ALL
SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM from_profiles
UNION ALL
SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM given_back
UNION ALL
SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM from_subjects
ORDER BY event_time DESC, event_id DESC
LIMIT :count::integer;

-- name: list_anonymous_events
-- One page of a visitor's events that are nobody's, newest first: younger than 30 days at this moment, and received after
-- the grace if the id is linked. Rows that an undone association is giving back are the visitor's again.
WITH own AS (
    SELECT
        event_time,
        event_id,
        receive_time,
        kind,
        false AS was_anonymous,
        name,
        anonymous_id,
        data
    FROM anonymous_events
    WHERE
        project_id = :project_id
        AND subject_id = :subject_id
        AND event_time > now() - :lifetime::interval
        AND receive_time > coalesce(
            (
                SELECT max(moves.window_end_time)
                FROM moves
                WHERE moves.project_id = :project_id AND moves.container_subject_id = :subject_id
            ),
            (
                SELECT identifiers.grace_end_time
                FROM identifiers
                WHERE
                    identifiers.project_id = :project_id
                    AND identifiers.kind = 3
                    AND identifiers.value = :anonymous_id
            ),
            '-infinity'
        )
        AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
        AND event_time >= :start_time::timestamptz
        AND (:names::text [] IS NULL OR name = ANY(:names::text []))
        AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
    ORDER BY event_time DESC, event_id DESC
    LIMIT :count::integer
),

given_back AS (
    SELECT
        source.event_time,
        source.event_id,
        source.receive_time,
        source.kind,
        source.was_anonymous,
        source.name,
        source.anonymous_id,
        source.data
    FROM moves
    CROSS JOIN LATERAL unnest(moves.origin_ids) AS origin (origin_id)
    CROSS JOIN LATERAL (
        SELECT
            event_time,
            event_id,
            receive_time,
            kind,
            false AS was_anonymous,
            name,
            anonymous_id,
            data
        FROM events
        WHERE
            project_id = :project_id
            AND profile_id = moves.container_profile_id
            AND origin_id = origin.origin_id
            AND event_time > now() - :lifetime::interval
            AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
            AND event_time >= :start_time::timestamptz
            AND (:names::text [] IS NULL OR name = ANY(:names::text []))
            AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
        ORDER BY event_time DESC, event_id DESC
        LIMIT :count::integer
    ) AS source
    WHERE moves.project_id = :project_id AND moves.owner_subject_id = :subject_id
)

SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM own
UNION ALL
SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM given_back
ORDER BY event_time DESC, event_id DESC
LIMIT :count::integer;

-- name: list_invite_events
-- One page of the invites sent to an address, newest first, without those that are being erased because the address was
-- forgotten.
SELECT
    event_time,
    event_id,
    receive_time,
    kind,
    false AS was_anonymous,
    name,
    NULL::text AS anonymous_id,
    data
FROM invite_events
WHERE
    project_id = :project_id
    AND recipient = :recipient
    AND receive_time > coalesce(
        (
            SELECT max(moves.window_end_time)
            FROM moves
            WHERE moves.project_id = :project_id AND moves.container_recipient = :recipient
        ),
        '-infinity'
    )
    AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
    AND event_time >= :start_time::timestamptz
    AND (:names::text [] IS NULL OR name = ANY(:names::text []))
    AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
ORDER BY event_time DESC, event_id DESC
LIMIT :count::integer;

-- name: hold_carts
-- The profiles whose carts a batch may change, with what the change builds on, and those whose identifiers it may change.
-- Held until the end of the transaction, always in this order: two batches over the same people cannot deadlock.
SELECT
    profile_id,
    email,
    user_id,
    cart_event_time,
    CASE WHEN profile_id = ANY(:shopping_ids::uuid []) THEN data_fields::text END AS data_fields
FROM profiles
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid [])
ORDER BY profile_id
FOR UPDATE;

-- name: set_carts
-- Where only the moment changes, because the cart is the same as before, the profile is not updated for its readers.
UPDATE profiles
SET
    data_fields = coalesce(new.data_fields, profiles.data_fields),
    cart_event_time = new.cart_event_time,
    profile_update_time = CASE WHEN new.data_fields IS NULL THEN profiles.profile_update_time ELSE now() END,
    update_time = CASE WHEN new.data_fields IS NULL THEN profiles.update_time ELSE now() END
FROM
    unnest(:profile_ids::uuid [], :cart_event_times::timestamptz [], :data_fields::json []) AS new (
        profile_id, cart_event_time, data_fields
    )
WHERE profiles.project_id = :project_id AND profiles.profile_id = new.profile_id;
