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
-- A person's events. The conflict can only be the same event told again after its id was forgotten (35 days): it is there.
INSERT INTO events (
    project_id,
    profile_id,
    event_time,
    event_id,
    receive_time,
    kind,
    was_anonymous,
    merge_id,
    name,
    anonymous_id,
    data
)
SELECT
    :project_id,
    new.profile_id,
    new.event_time,
    new.event_id,
    now(),
    new.kind,
    new.merge_id IS NOT NULL,
    new.merge_id,
    new.name,
    new.anonymous_id,
    new.data
FROM
    unnest(
        :profile_ids::uuid [],
        :event_times::timestamptz [],
        :event_ids::text [],
        :kinds::smallint [],
        :merge_ids::uuid [],
        :names::text [],
        :anonymous_ids::text [],
        :data::json []
    ) AS new (profile_id, event_time, event_id, kind, merge_id, name, anonymous_id, data)
ON CONFLICT DO NOTHING;

-- name: insert_anonymous_events
-- Visitors' events.
INSERT INTO anonymous_events (
    project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
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
    new.data
FROM
    unnest(
        :subject_ids::uuid [],
        :event_times::timestamptz [],
        :event_ids::text [],
        :kinds::smallint [],
        :names::text [],
        :anonymous_ids::text [],
        :data::json []
    ) AS new (subject_id, event_time, event_id, kind, name, anonymous_id, data)
ON CONFLICT DO NOTHING;

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
-- One page of a person's timeline, newest first: the person's own rows and, while a merge into them is open, the source's
-- rows that are not moved yet. One statement sees one moment, and a row is moved in one transaction, so it is seen once.
-- Of an anonymous_id's rows those belong to the person that were alive when the id was linked and received before the
-- grace ended.
WITH own AS (
    SELECT
        event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
    FROM events
    WHERE
        project_id = :project_id
        AND profile_id = :profile_id
        AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
        AND event_time >= :start_time::timestamptz
        AND (:names::text [] IS NULL OR name = ANY(:names::text []))
        AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
    ORDER BY event_time DESC, event_id DESC
    LIMIT :count::integer
),

looked_through AS (
    SELECT
        source.event_time,
        source.event_id,
        source.receive_time,
        source.kind,
        true AS was_anonymous,
        source.name,
        source.anonymous_id,
        source.data
    FROM merges
    CROSS JOIN LATERAL (
        SELECT
            event_time, event_id, receive_time, kind, name, anonymous_id, data
        FROM anonymous_events
        WHERE
            project_id = :project_id
            AND subject_id = merges.subject_id
            AND receive_time <= merges.window_end_time
            AND event_time > merges.create_time - :lifetime::interval
            AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
            AND event_time >= :start_time::timestamptz
            AND (:names::text [] IS NULL OR name = ANY(:names::text []))
            AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
        ORDER BY event_time DESC, event_id DESC
        LIMIT :count::integer
    ) AS source
    WHERE
        merges.project_id = :project_id
        AND merges.target_profile_id = :profile_id
        AND merges.settle_time IS NULL
)

SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM own
UNION ALL
SELECT event_time, event_id, receive_time, kind, was_anonymous, name, anonymous_id, data
FROM looked_through
ORDER BY event_time DESC, event_id DESC
LIMIT :count::integer;

-- name: list_anonymous_events
-- One page of a visitor's events that are nobody's, newest first: younger than 30 days at this moment, and, if the id is
-- linked, received after its grace.
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
    AND (event_time, event_id) < (:before_time::timestamptz, :before_id::text)
    AND event_time >= :start_time::timestamptz
    AND (:names::text [] IS NULL OR name = ANY(:names::text []))
    AND (:kinds::smallint [] IS NULL OR kind = ANY(:kinds::smallint []))
    AND receive_time > coalesce(
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
ORDER BY event_time DESC, event_id DESC
LIMIT :count::integer;
