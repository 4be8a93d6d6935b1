-- name: begin_pass
-- A pass over what a merge has still to move. The first one notes when a worker first saw the merge committed; pass_time
-- is read with the same clock.
UPDATE merges
SET first_pass_time = coalesce(first_pass_time, clock_timestamp())
WHERE project_id = :project_id AND merge_id = :merge_id AND settle_time IS NULL
RETURNING clock_timestamp() AS pass_time, first_pass_time;

-- name: relocate_chunk
-- Moves the next rows of an anonymous_id, oldest first, to the person it was linked to; returns how many, the oldest, and
-- the last key looked at, which is null when there are no further rows. A reader's statement sees the chunk moved or not
-- moved, never half. The rows of an id that are not the person's (received after the grace, or dead before the link) are
-- passed over. Starting after the last chunk's key spares walking over the dead entries it left in the index.
WITH merge AS (
    SELECT subject_id, target_profile_id, create_time, window_end_time
    FROM merges
    WHERE project_id = :project_id AND merge_id = :merge_id
),

last AS (
    SELECT anonymous_events.event_time, anonymous_events.event_id
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT merge.subject_id FROM merge)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY anonymous_events.event_time, anonymous_events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

moved AS (
    DELETE FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT merge.subject_id FROM merge)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (anonymous_events.event_time, anonymous_events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND anonymous_events.receive_time <= (SELECT merge.window_end_time FROM merge)
        AND anonymous_events.event_time > (SELECT merge.create_time FROM merge) - :lifetime::interval
    RETURNING
        anonymous_events.event_time,
        anonymous_events.event_id,
        anonymous_events.receive_time,
        anonymous_events.kind,
        anonymous_events.name,
        anonymous_events.anonymous_id,
        anonymous_events.data
),

put AS (
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
        (SELECT merge.target_profile_id FROM merge),
        moved.event_time,
        moved.event_id,
        moved.receive_time,
        moved.kind,
        true,
        :merge_id,
        moved.name,
        moved.anonymous_id,
        moved.data
    FROM moved
    -- The person has this very event already: it was told again after its id was forgotten.
    ON CONFLICT DO NOTHING
)

SELECT
    (SELECT count(*) FROM moved) AS event_count,
    (SELECT min(moved.event_time) FROM moved) AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id;

-- name: count_moved
-- Last in its transaction: a call that counts a late event waits for this row until the commit, and no longer.
UPDATE merges
SET
    moved_event_count = moved_event_count + :event_count,
    moved_oldest_event_time = least(moved_oldest_event_time, :oldest_event_time)
WHERE project_id = :project_id AND merge_id = :merge_id;

-- name: settle_merge
-- From here on reads no longer look through to the source.
UPDATE merges
SET settle_time = clock_timestamp()
WHERE project_id = :project_id AND merge_id = :merge_id AND settle_time IS NULL;

-- name: disable_chunk
-- Switches off the next holders' copies that were registered before the disable, by profile_id; returns how many, and the
-- last profile looked at, which is null when there are no further holders. A copy registered since has a higher number and
-- is left alone, also when it is registered while this statement waits for its row.
WITH disable AS (
    SELECT token, operation_number, create_time
    FROM token_disables
    WHERE project_id = :project_id AND disable_id = :disable_id
),

last AS (
    SELECT devices.profile_id
    FROM devices
    WHERE
        devices.project_id = :project_id
        AND devices.token = (SELECT disable.token FROM disable)
        AND devices.profile_id > :after_profile_id
    ORDER BY devices.profile_id
    OFFSET :count::integer - 1
    LIMIT 1
),

switched AS (
    UPDATE devices
    SET endpoint_enabled = false, update_time = (SELECT disable.create_time FROM disable)
    WHERE
        devices.project_id = :project_id
        AND devices.token = (SELECT disable.token FROM disable)
        AND devices.profile_id > :after_profile_id
        AND devices.profile_id <= coalesce(
            (SELECT last.profile_id FROM last), 'ffffffff-ffff-ffff-ffff-ffffffffffff'
        )
        AND devices.operation_number < (SELECT disable.operation_number FROM disable)
        AND devices.endpoint_enabled
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM switched) AS disabled_count,
    (SELECT last.profile_id FROM last) AS last_profile_id;

-- name: count_disabled
UPDATE token_disables
SET
    disabled_count = disabled_count + :disabled_count,
    finish_time = CASE WHEN :is_last::boolean THEN clock_timestamp() END
WHERE project_id = :project_id AND disable_id = :disable_id;

-- name: oldest_open_merge
-- What retention must keep for the workers. Looks across projects.
SELECT now() AS now, min(create_time) AS oldest_open_merge
FROM merges
WHERE settle_time IS NULL;

-- name: purge_requests
-- A few answers older than 24 hours. Reads do not show them any more; small steps keep every lock short.
DELETE FROM requests
WHERE
    ctid = ANY(
        ARRAY(
            SELECT requests.ctid FROM requests
            WHERE requests.create_time <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND create_time <= now() - :lifetime::interval;

-- name: purge_event_ids
-- A few event ids older than 35 days.
DELETE FROM event_ids
WHERE
    ctid = ANY(
        ARRAY(
            SELECT event_ids.ctid FROM event_ids
            WHERE event_ids.receive_time <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND receive_time <= now() - :lifetime::interval;
