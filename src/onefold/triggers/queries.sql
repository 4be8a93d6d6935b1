-- name: record_triggers
-- In the transaction that stores the events: both are committed, or neither. In their order. An event that has a trigger
-- already triggers anew, at the end; so does the worker, when an association that was undone is made again.
INSERT INTO triggers (project_id, mark, profile_id, recipient, event_time, event_id)
SELECT :project_id, new.mark, new.profile_id, new.recipient, new.event_time, new.event_id
FROM
    unnest(
        :marks::smallint [], :profile_ids::uuid [], :recipients::text [], :event_times::timestamptz [], :event_ids::text []
    ) AS new (mark, profile_id, recipient, event_time, event_id)
ON CONFLICT (project_id, event_id, event_time) DO UPDATE
SET
    trigger_number = excluded.trigger_number,
    mark = excluded.mark,
    profile_id = excluded.profile_id,
    recipient = excluded.recipient,
    create_time = excluded.create_time;

-- name: last_trigger_number
-- The last number handed out, also by a transaction that has not ended; 0 before the first.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END
FROM trigger_numbers;

-- name: newest_triggers
-- The newest committed trigger of each project that is watched, for those that have one.
SELECT watched.project_id, newest.trigger_number
FROM unnest(:project_ids::text []) AS watched (project_id)
CROSS JOIN LATERAL (
    SELECT triggers.trigger_number
    FROM triggers
    WHERE triggers.project_id = watched.project_id
    ORDER BY triggers.trigger_number DESC
    LIMIT 1
) AS newest;

-- name: trigger_writers
-- Every transaction that has written to triggers and has not ended: an INSERT holds this lock before it takes its first
-- number, and until after its rows are seen by others. Nobody else is waited for: who holds a snapshot, or has written
-- elsewhere, holds nobody up.
SELECT DISTINCT virtualtransaction
FROM pg_locks
WHERE
    locktype = 'relation'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND relation = 'triggers'::regclass
    AND mode = 'RowExclusiveLock'
    AND granted;

-- name: trigger_state
-- Whether the project keeps triggers, and up to which number they were removed because their time was over.
SELECT
    projects.triggers_enabled,
    coalesce(trigger_purges.purged_number, 0) AS purged_number
FROM projects
LEFT JOIN trigger_purges ON trigger_purges.project_id = :project_id
WHERE projects.project_id = :project_id;

-- name: next_triggers
-- The next triggers in order, up to a number until which all are decided.
SELECT trigger_number, mark, profile_id, recipient, event_time, event_id, create_time
FROM triggers
WHERE
    project_id = :project_id AND trigger_number > :after_number AND trigger_number <= :decided_number
ORDER BY trigger_number
LIMIT :count::integer;

-- name: triggered_events
-- The events of triggers, wherever they lie by now, and whose they are at this moment: found by the timeline's key with
-- the profile that each was put to, with those that it was merged into since, and, after an undo, with the sources.
-- Whose a row is, open moves say, as they do to ListEvents. One that is nobody's (its association was undone) or is being
-- erased does not come back, and neither does one that is gone.
WITH RECURSIVE containers (recorded_id, profile_id) AS (
    SELECT recorded.profile_id, recorded.profile_id
    FROM unnest(:profile_ids::uuid []) AS recorded (profile_id)
    UNION
    SELECT containers.recorded_id, other.profile_id
    FROM containers
    CROSS JOIN LATERAL (
        SELECT merges.target_profile_id AS profile_id
        FROM merges
        WHERE
            merges.project_id = :project_id
            AND merges.source_profile_id = containers.profile_id
            AND merges.kind = 'PROFILE'
        UNION ALL
        SELECT merges.source_profile_id
        FROM merges
        WHERE
            merges.project_id = :project_id
            AND merges.target_profile_id = containers.profile_id
            AND merges.kind = 'PROFILE'
            AND merges.undo_time IS NOT NULL
    ) AS other
),

places AS (
    SELECT containers.recorded_id, array_agg(containers.profile_id) AS profile_ids
    FROM containers
    GROUP BY containers.recorded_id
),

open_moves AS MATERIALIZED (
    SELECT moves.container_profile_id, moves.origin_ids, moves.owner_profile_id, moves.alive_after
    FROM moves
    WHERE
        moves.project_id = :project_id
        AND moves.container_profile_id = ANY(ARRAY(SELECT DISTINCT containers.profile_id FROM containers))
)

SELECT
    wanted.trigger_number,
    coalesce(move.owner_profile_id, event.profile_id) AS profile_id,
    event.event_time,
    event.event_id,
    event.receive_time,
    event.kind,
    event.was_anonymous,
    event.name,
    event.anonymous_id,
    event.data
FROM
    unnest(
        :trigger_numbers::bigint [], :profile_ids::uuid [], :event_times::timestamptz [], :event_ids::text []
    ) AS wanted (trigger_number, profile_id, event_time, event_id)
INNER JOIN places ON places.recorded_id = wanted.profile_id
CROSS JOIN LATERAL (
    SELECT
        events.profile_id,
        events.event_time,
        events.event_id,
        events.receive_time,
        events.kind,
        events.was_anonymous,
        events.origin_id,
        events.name,
        events.anonymous_id,
        events.data
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = ANY(places.profile_ids)
        AND events.event_time = wanted.event_time
        AND events.event_id = wanted.event_id
        AND (:names::text [] IS NULL OR events.name = ANY(:names::text []))
        AND (:kinds::smallint [] IS NULL OR events.kind = ANY(:kinds::smallint []))
    LIMIT 1
) AS event
LEFT JOIN LATERAL (
    SELECT open_moves.owner_profile_id, open_moves.alive_after
    FROM open_moves
    WHERE
        open_moves.container_profile_id = event.profile_id
        AND (open_moves.origin_ids IS NULL OR event.origin_id = ANY(open_moves.origin_ids))
    -- What is being given back from there comes before what is being taken away as a whole.
    ORDER BY open_moves.origin_ids IS NULL
    LIMIT 1
) AS move ON true
WHERE
    move.alive_after IS NULL
    OR (move.owner_profile_id IS NOT NULL AND event.event_time > move.alive_after)
ORDER BY wanted.trigger_number;

-- name: triggered_invites
-- The invites of triggers, without those that are being erased because their address was forgotten.
SELECT
    wanted.trigger_number,
    invite_events.recipient,
    invite_events.event_time,
    invite_events.event_id,
    invite_events.receive_time,
    invite_events.kind,
    invite_events.name,
    invite_events.data
FROM
    unnest(
        :trigger_numbers::bigint [], :recipients::text [], :event_times::timestamptz [], :event_ids::text []
    ) AS wanted (trigger_number, recipient, event_time, event_id)
INNER JOIN invite_events
    ON
        invite_events.project_id = :project_id
        AND invite_events.recipient = wanted.recipient
        AND invite_events.event_time = wanted.event_time
        AND invite_events.event_id = wanted.event_id
WHERE
    (:names::text [] IS NULL OR invite_events.name = ANY(:names::text []))
    AND (:kinds::smallint [] IS NULL OR invite_events.kind = ANY(:kinds::smallint []))
    AND NOT EXISTS (
        SELECT FROM moves
        WHERE
            moves.project_id = :project_id
            AND moves.container_recipient = invite_events.recipient
            AND moves.window_end_time >= invite_events.receive_time
    );
