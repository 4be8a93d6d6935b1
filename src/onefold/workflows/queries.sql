-- name: begin_pass
-- A pass over what a move has still to move. The first one notes when a worker first saw the move committed; pass_time is
-- read with the same clock. The row stays locked for the chunk, so that its owner cannot change under it.
UPDATE moves
SET first_pass_time = coalesce(first_pass_time, clock_timestamp())
WHERE project_id = :project_id AND move_id = :move_id
RETURNING clock_timestamp() AS pass_time, first_pass_time;

-- name: lock_move
-- What to move, and to whom now: a merge that comes meanwhile changes the owner, and waits for the chunk to end. link_time
-- is set if what is moved may trigger (A9): a link brings it, and the project wants to be told. A merge of profiles and an
-- undo bring nothing that triggers.
SELECT
    merge_id,
    counted_merge_ids,
    container_profile_id,
    container_subject_id,
    container_recipient,
    origin_ids,
    window_end_time,
    owner_profile_id,
    owner_subject_id,
    (
        SELECT merges.create_time
        FROM merges
        INNER JOIN projects ON projects.project_id = :project_id AND projects.triggers_enabled
        WHERE
            merges.project_id = :project_id
            AND merges.merge_id = moves.merge_id
            AND merges.kind = 'ASSOCIATION'
            AND merges.undo_time IS NULL
    ) AS link_time
FROM moves
WHERE project_id = :project_id AND move_id = :move_id
FOR UPDATE;

-- name: subject_to_profile
-- Moves the next rows of a subject, oldest first, to a person; returns how many, the oldest, and the last key looked at,
-- which is null when there are no further rows. A reader's statement sees the chunk moved or not moved, never half. The
-- rows that are not the person's (received after the grace, or dead before the link) are passed over. Starting after the
-- last chunk's key spares walking over the dead entries that it left in the index.
WITH move AS (
    SELECT container_subject_id, owner_profile_id, window_start_time, window_end_time, alive_after
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

last AS (
    SELECT anonymous_events.event_time, anonymous_events.event_id
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT move.container_subject_id FROM move)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY anonymous_events.event_time, anonymous_events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

moved AS (
    DELETE FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT move.container_subject_id FROM move)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (anonymous_events.event_time, anonymous_events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND anonymous_events.receive_time > (SELECT move.window_start_time FROM move)
        AND anonymous_events.receive_time <= (SELECT move.window_end_time FROM move)
        AND anonymous_events.event_time > (SELECT move.alive_after FROM move)
    RETURNING
        anonymous_events.event_time,
        anonymous_events.event_id,
        anonymous_events.receive_time,
        anonymous_events.kind,
        anonymous_events.name,
        anonymous_events.anonymous_id,
        anonymous_events.suppress_triggers,
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
        origin_id,
        name,
        anonymous_id,
        suppress_triggers,
        data
    )
    SELECT
        :project_id,
        (SELECT move.owner_profile_id FROM move),
        moved.event_time,
        moved.event_id,
        moved.receive_time,
        moved.kind,
        true,
        (SELECT move.container_subject_id FROM move),
        moved.name,
        moved.anonymous_id,
        moved.suppress_triggers,
        moved.data
    FROM moved
),

-- What may set something off, if anything here may.
triggering AS (
    SELECT
        array_agg(moved.event_time ORDER BY moved.event_time, moved.event_id) AS event_times,
        array_agg(moved.event_id ORDER BY moved.event_time, moved.event_id) AS event_ids
    FROM moved
    WHERE moved.event_time > :trigger_after::timestamptz AND NOT moved.suppress_triggers
)

SELECT
    (SELECT count(*) FROM moved) AS event_count,
    (SELECT min(moved.event_time) FROM moved) AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id,
    (SELECT triggering.event_times FROM triggering) AS trigger_times,
    (SELECT triggering.event_ids FROM triggering) AS trigger_ids;

-- name: profile_to_profile
-- The same between persons: everything of a source that was merged, or, of a merge that was undone, what came from the
-- source. Each row keeps where it came from; one that is back where it was received has come from nowhere.
WITH move AS (
    SELECT container_profile_id, origin_ids, owner_profile_id, alive_after
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

given_back AS (
    SELECT
        ARRAY(
            SELECT unnest(moves.origin_ids)
            FROM moves
            WHERE
                moves.project_id = :project_id
                AND moves.container_profile_id = (SELECT move.container_profile_id FROM move)
        ) AS origin_ids
),

last AS (
    SELECT events.event_time, events.event_id
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY events.event_time, events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

moved AS (
    DELETE FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (events.event_time, events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND CASE
            WHEN (SELECT move.origin_ids FROM move) IS NULL
                THEN (events.origin_id = ANY((SELECT given_back.origin_ids FROM given_back)::uuid [])) IS NOT TRUE
            ELSE events.origin_id = ANY((SELECT move.origin_ids FROM move)::uuid [])
        END
    RETURNING
        events.event_time,
        events.event_id,
        events.receive_time,
        events.kind,
        events.was_anonymous,
        events.origin_id,
        events.name,
        events.anonymous_id,
        events.suppress_triggers,
        events.data
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
        origin_id,
        name,
        anonymous_id,
        suppress_triggers,
        data
    )
    SELECT
        :project_id,
        (SELECT move.owner_profile_id FROM move),
        moved.event_time,
        moved.event_id,
        moved.receive_time,
        moved.kind,
        moved.was_anonymous,
        nullif(
            coalesce(moved.origin_id, (SELECT move.container_profile_id FROM move)),
            (SELECT move.owner_profile_id FROM move)
        ),
        moved.name,
        moved.anonymous_id,
        moved.suppress_triggers,
        moved.data
    FROM moved
    -- An anonymous event whose 30 days were over before its id was linked again goes for good.
    WHERE moved.event_time > (SELECT move.alive_after FROM move)
),

triggering AS (
    SELECT
        array_agg(moved.event_time ORDER BY moved.event_time, moved.event_id) AS event_times,
        array_agg(moved.event_id ORDER BY moved.event_time, moved.event_id) AS event_ids
    FROM moved
    WHERE moved.event_time > :trigger_after::timestamptz AND NOT moved.suppress_triggers
)

SELECT
    (SELECT count(*) FROM moved) AS event_count,
    (SELECT min(moved.event_time) FROM moved) AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id,
    (SELECT triggering.event_times FROM triggering) AS trigger_times,
    (SELECT triggering.event_ids FROM triggering) AS trigger_ids;

-- name: drop_told_again_to_subject
-- An event of a subject that its owner has already, under the same id and time, was told again after its id was forgotten
-- (35 days). It is in the way of the moves, which insert plainly because that is a third faster.
DELETE FROM anonymous_events
USING moves, events
WHERE
    moves.project_id = :project_id
    AND moves.move_id = :move_id
    AND anonymous_events.project_id = :project_id
    AND anonymous_events.subject_id = moves.container_subject_id
    AND events.project_id = :project_id
    AND events.profile_id = moves.owner_profile_id
    AND events.event_time = anonymous_events.event_time
    AND events.event_id = anonymous_events.event_id;

-- name: drop_told_again_to_profile
-- The same between persons.
DELETE FROM events
USING moves, events AS kept
WHERE
    moves.project_id = :project_id
    AND moves.move_id = :move_id
    AND moves.container_profile_id <> moves.owner_profile_id
    AND (moves.origin_ids IS NULL OR events.origin_id = ANY(moves.origin_ids))
    AND events.project_id = :project_id
    AND events.profile_id = moves.container_profile_id
    AND kept.project_id = :project_id
    AND kept.profile_id = moves.owner_profile_id
    AND kept.event_time = events.event_time
    AND kept.event_id = events.event_id;

-- name: count_in_place
-- A merge that was undone and made again before anything had moved: the rows lie where they belong. They are counted, and
-- those whose 30 days were over before their id was linked again go for good.
WITH move AS (
    SELECT container_profile_id, origin_ids, alive_after
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

last AS (
    SELECT events.event_time, events.event_id
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY events.event_time, events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

dead AS (
    DELETE FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND events.event_time <= (SELECT move.alive_after FROM move)
        AND events.origin_id = ANY((SELECT move.origin_ids FROM move)::uuid [])
),

here AS (
    SELECT events.event_time, events.event_id, events.suppress_triggers
    FROM events
    WHERE
        -- Only the last pass counts: the ones before would count the same rows.
        :is_last_pass::boolean
        AND events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (events.event_time, events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND events.event_time > (SELECT move.alive_after FROM move)
        AND events.origin_id = ANY((SELECT move.origin_ids FROM move)::uuid [])
),

triggering AS (
    SELECT
        array_agg(here.event_time ORDER BY here.event_time, here.event_id) AS event_times,
        array_agg(here.event_id ORDER BY here.event_time, here.event_id) AS event_ids
    FROM here
    WHERE here.event_time > :trigger_after::timestamptz AND NOT here.suppress_triggers
)

SELECT
    (SELECT count(*) FROM here) AS event_count,
    (SELECT min(here.event_time) FROM here) AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id,
    (SELECT triggering.event_times FROM triggering) AS trigger_times,
    (SELECT triggering.event_ids FROM triggering) AS trigger_ids;

-- name: profile_to_subject
-- The same from a person back to an anonymous_id whose association was undone. What is 30 days old by now goes for good.
WITH move AS (
    SELECT container_profile_id, origin_ids, owner_subject_id
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

last AS (
    SELECT events.event_time, events.event_id
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY events.event_time, events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

moved AS (
    DELETE FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (events.event_time, events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND events.origin_id = ANY((SELECT move.origin_ids FROM move)::uuid [])
    RETURNING
        events.event_time,
        events.event_id,
        events.receive_time,
        events.kind,
        events.name,
        events.anonymous_id,
        events.suppress_triggers,
        events.data
),

put AS (
    INSERT INTO anonymous_events (
        project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, suppress_triggers, data
    )
    SELECT
        :project_id,
        (SELECT move.owner_subject_id FROM move),
        moved.event_time,
        moved.event_id,
        moved.receive_time,
        moved.kind,
        moved.name,
        moved.anonymous_id,
        moved.suppress_triggers,
        moved.data
    FROM moved
    WHERE moved.event_time > now() - :lifetime::interval AND moved.anonymous_id IS NOT NULL
    ON CONFLICT DO NOTHING
)

SELECT
    (SELECT count(*) FROM moved) AS event_count,
    (SELECT min(moved.event_time) FROM moved) AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id;

-- name: erase_profile
-- Erases the next rows of a person who was forgotten, with the event ids that their callers gave and what they would
-- still set off.
WITH move AS (
    SELECT container_profile_id, origin_ids
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

given_back AS (
    SELECT
        ARRAY(
            SELECT unnest(moves.origin_ids)
            FROM moves
            WHERE
                moves.project_id = :project_id
                AND moves.container_profile_id = (SELECT move.container_profile_id FROM move)
        ) AS origin_ids
),

last AS (
    SELECT events.event_time, events.event_id
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY events.event_time, events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

erased AS (
    DELETE FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = (SELECT move.container_profile_id FROM move)
        AND (events.event_time, events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (events.event_time, events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND CASE
            WHEN (SELECT move.origin_ids FROM move) IS NULL
                THEN (events.origin_id = ANY((SELECT given_back.origin_ids FROM given_back)::uuid [])) IS NOT TRUE
            ELSE events.origin_id = ANY((SELECT move.origin_ids FROM move)::uuid [])
        END
    RETURNING events.event_time, events.event_id, events.receive_time
),

ids AS (
    DELETE FROM event_ids
    USING erased
    WHERE
        event_ids.project_id = :project_id
        AND event_ids.event_id = erased.event_id
        -- An id that was used anew after its 35 days is another event's.
        AND event_ids.receive_time = erased.receive_time
),

untriggered AS (
    DELETE FROM triggers
    USING erased
    WHERE
        triggers.project_id = :project_id
        AND triggers.event_id = erased.event_id
        AND triggers.event_time = erased.event_time
)

SELECT
    (SELECT count(*) FROM erased) AS event_count,
    NULL::timestamptz AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id;

-- name: erase_subject
-- The same for the anonymous rows of an id that was the person's.
WITH move AS (
    SELECT container_subject_id, window_end_time
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

last AS (
    SELECT anonymous_events.event_time, anonymous_events.event_id
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT move.container_subject_id FROM move)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY anonymous_events.event_time, anonymous_events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

erased AS (
    DELETE FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = (SELECT move.container_subject_id FROM move)
        AND (anonymous_events.event_time, anonymous_events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (anonymous_events.event_time, anonymous_events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND anonymous_events.receive_time <= (SELECT move.window_end_time FROM move)
    RETURNING anonymous_events.event_time, anonymous_events.event_id, anonymous_events.receive_time
),

ids AS (
    DELETE FROM event_ids
    USING erased
    WHERE
        event_ids.project_id = :project_id
        AND event_ids.event_id = erased.event_id
        -- An id that was used anew after its 35 days is another event's.
        AND event_ids.receive_time = erased.receive_time
),

untriggered AS (
    DELETE FROM triggers
    USING erased
    WHERE
        triggers.project_id = :project_id
        AND triggers.event_id = erased.event_id
        AND triggers.event_time = erased.event_time
)

SELECT
    (SELECT count(*) FROM erased) AS event_count,
    NULL::timestamptz AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id;

-- name: erase_invites
-- The same for the invites sent to an address that was forgotten.
WITH move AS (
    SELECT container_recipient, window_end_time
    FROM moves
    WHERE project_id = :project_id AND move_id = :move_id
),

last AS (
    SELECT invite_events.event_time, invite_events.event_id
    FROM invite_events
    WHERE
        invite_events.project_id = :project_id
        AND invite_events.recipient = (SELECT move.container_recipient FROM move)
        AND (invite_events.event_time, invite_events.event_id) > (:after_time::timestamptz, :after_id::text)
    ORDER BY invite_events.event_time, invite_events.event_id
    OFFSET :count::integer - 1
    LIMIT 1
),

erased AS (
    DELETE FROM invite_events
    WHERE
        invite_events.project_id = :project_id
        AND invite_events.recipient = (SELECT move.container_recipient FROM move)
        AND (invite_events.event_time, invite_events.event_id) > (:after_time::timestamptz, :after_id::text)
        AND (invite_events.event_time, invite_events.event_id) <= (
            coalesce((SELECT last.event_time FROM last), 'infinity'), coalesce((SELECT last.event_id FROM last), '')
        )
        AND invite_events.receive_time <= (SELECT move.window_end_time FROM move)
    RETURNING invite_events.event_time, invite_events.event_id, invite_events.receive_time
),

ids AS (
    DELETE FROM event_ids
    USING erased
    WHERE
        event_ids.project_id = :project_id
        AND event_ids.event_id = erased.event_id
        -- An id that was used anew after its 35 days is another event's.
        AND event_ids.receive_time = erased.receive_time
),

untriggered AS (
    DELETE FROM triggers
    USING erased
    WHERE
        triggers.project_id = :project_id
        AND triggers.event_id = erased.event_id
        AND triggers.event_time = erased.event_time
)

SELECT
    (SELECT count(*) FROM erased) AS event_count,
    NULL::timestamptz AS oldest_event_time,
    (SELECT last.event_time FROM last) AS last_time,
    (SELECT last.event_id FROM last) AS last_id;

-- name: delete_answers
-- Stored answers that tell about a person who was forgotten, or about a visitor or an address until the person was. What
-- the visitor allowed until then goes too, and how near to a profile the visitor was.
WITH allowed AS (
    DELETE FROM consents
    WHERE
        consents.project_id = :project_id
        AND consents.holder_id = :profile_id
        AND consents.record_time <= :until::timestamptz
),

visitors AS (
    DELETE FROM activation_visitors
    WHERE
        activation_visitors.project_id = :project_id
        AND activation_visitors.subject_id = :profile_id
        AND activation_visitors.active_day <= :until::timestamptz
)

DELETE FROM requests
WHERE project_id = :project_id AND profile_ids && ARRAY[:profile_id::uuid] AND create_time <= :until::timestamptz;

-- name: erase_activities
-- The next notes about a person who was forgotten and about all that was part of the person; only that somebody was
-- forgotten stays.
DELETE FROM activities
WHERE
    project_id = :project_id
    AND ctid = ANY(
        ARRAY(
            SELECT noted.ctid
            FROM activities AS noted
            WHERE
                noted.project_id = :project_id
                AND noted.kind <> 5
                AND noted.profile_id = ANY(
                    :profile_id::uuid || ARRAY(
                        SELECT unnest(merges.origin_ids)
                        FROM merges
                        WHERE
                            merges.project_id = :project_id
                            AND merges.target_profile_id = :profile_id
                            AND merges.kind = 'PROFILE'
                            AND merges.undo_time IS NULL
                    )
                )
            LIMIT :count::integer
        )
    );

-- name: count_moved
-- Last in its transaction: a call that counts a late event waits for this row until the commit, and no longer. What goes
-- back when a merge is undone is not counted. In order: a call may hold several of them.
WITH counted AS (
    SELECT merges.merge_id
    FROM merges
    WHERE
        merges.project_id = :project_id
        AND merges.merge_id = ANY(:merge_ids::uuid [])
        AND merges.undo_time IS NULL
    ORDER BY merges.merge_id
    FOR UPDATE
)

UPDATE merges
SET
    moved_event_count = merges.moved_event_count + :event_count,
    moved_oldest_event_time = least(merges.moved_oldest_event_time, :oldest_event_time)
FROM counted
WHERE merges.project_id = :project_id AND merges.merge_id = counted.merge_id;

-- name: finish_move
-- From here on reads no longer look through to the container.
DELETE FROM moves
WHERE project_id = :project_id AND move_id = :move_id;

-- name: settle_merges
-- Those for which nothing is left to move.
UPDATE merges
SET settle_time = clock_timestamp()
WHERE
    project_id = :project_id
    AND merge_id = ANY(:merge_ids::uuid [])
    AND settle_time IS NULL
    AND NOT EXISTS (
        SELECT FROM moves
        WHERE moves.project_id = :project_id AND merges.merge_id = ANY(moves.counted_merge_ids)
    );

-- name: disable_chunk
-- Switches off the next holders' copies that were registered before the disable, by profile_id; returns how many were on,
-- and the last profile looked at, which is null when there are no further holders. A copy registered since has a higher
-- number and is left alone, also when it is registered while this statement waits for its row. One that was off already
-- gets the number too: an undo must see that it was disabled since the merge.
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
    SET
        endpoint_enabled = false,
        operation_number = (SELECT disable.operation_number FROM disable),
        update_time = CASE
            WHEN devices.endpoint_enabled THEN (SELECT disable.create_time FROM disable) ELSE devices.update_time
        END
    WHERE
        devices.project_id = :project_id
        AND devices.token = (SELECT disable.token FROM disable)
        AND devices.profile_id > :after_profile_id
        AND devices.profile_id <= coalesce(
            (SELECT last.profile_id FROM last), 'ffffffff-ffff-ffff-ffff-ffffffffffff'
        )
        AND devices.operation_number < (SELECT disable.operation_number FROM disable)
    RETURNING old.endpoint_enabled AS was_enabled
)

SELECT
    (SELECT count(*) FROM switched WHERE was_enabled) AS disabled_count,
    (SELECT last.profile_id FROM last) AS last_profile_id;

-- name: count_disabled
UPDATE token_disables
SET
    disabled_count = disabled_count + :disabled_count,
    finish_time = CASE WHEN :is_last::boolean THEN clock_timestamp() END
WHERE project_id = :project_id AND disable_id = :disable_id;

-- name: oldest_wanted_event
-- What retention must keep for the workers: events that were alive when their id was linked. Looks across projects.
SELECT now() AS now, min(alive_after) AS oldest_wanted
FROM moves
WHERE container_subject_id IS NOT NULL AND alive_after > '-infinity';

-- name: purge_default_partition
-- Events that had to go to the default partition, and whose time is over as it is for a partition that is dropped.
DELETE FROM anonymous_events_default
WHERE
    ctid = ANY(
        ARRAY(
            SELECT stray.ctid FROM anonymous_events_default AS stray
            WHERE
                stray.event_time <= least(
                    now() - :lifetime::interval,
                    (
                        SELECT min(moves.alive_after)
                        FROM moves
                        WHERE moves.container_subject_id IS NOT NULL AND moves.alive_after > '-infinity'
                    )
                ) - interval '1 hour'
            LIMIT :count::integer
        )
    )
    AND event_time <= now() - :lifetime::interval;

-- name: purge_disables
-- Disables that ended more than 30 days ago: nobody asks for them any more, and they hold tokens.
DELETE FROM token_disables
WHERE
    ctid = ANY(
        ARRAY(
            SELECT token_disables.ctid FROM token_disables
            WHERE token_disables.finish_time <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND finish_time <= now() - :lifetime::interval;

-- name: purge_copies
-- Devices of profiles merged away more than 30 days ago, kept until then for an undo. Their tokens are with the target; who
-- looks for the holders of one would pass by ever more of the dead. A profile may have been merged before, and have come back:
-- none of its merges may still be undone. Before purge_snapshots, which tells whose they are.
DELETE FROM devices
WHERE
    ctid = ANY(
        ARRAY(
            SELECT copies.ctid
            FROM merges
            INNER JOIN devices AS copies
                ON merges.project_id = copies.project_id AND merges.source_profile_id = copies.profile_id
            WHERE
                merges.snapshot IS NOT NULL
                AND merges.create_time <= now() - :lifetime::interval
                AND NOT EXISTS (
                    SELECT FROM profiles
                    WHERE profiles.project_id = copies.project_id AND profiles.profile_id = copies.profile_id
                )
                AND NOT EXISTS (
                    SELECT FROM merges AS young
                    WHERE
                        young.project_id = copies.project_id
                        AND young.source_profile_id = copies.profile_id
                        AND young.undo_time IS NULL
                        AND young.create_time > now() - :lifetime::interval
                )
            LIMIT :count::integer
        )
    );

-- name: purge_snapshots
-- Merges older than 30 days cannot be undone any more: what was kept for it goes, the source's devices first. One that was
-- undone has nothing to wait for.
UPDATE merges
SET snapshot = NULL
WHERE
    ctid = ANY(
        ARRAY(
            SELECT merges.ctid FROM merges
            WHERE
                merges.snapshot IS NOT NULL
                AND merges.create_time <= now() - :lifetime::interval
                AND (
                    merges.undo_time IS NOT NULL
                    OR NOT EXISTS (
                        SELECT FROM devices
                        WHERE
                            devices.project_id = merges.project_id AND devices.profile_id = merges.source_profile_id
                    )
                    OR EXISTS (
                        SELECT FROM profiles
                        WHERE
                            profiles.project_id = merges.project_id
                            AND profiles.profile_id = merges.source_profile_id
                    )
                )
            LIMIT :count::integer
        )
    )
    AND create_time <= now() - :lifetime::interval;

-- name: purge_redirects
-- Identifiers that a merge left and whose time is over: free already, now also gone.
DELETE FROM identifiers
WHERE
    ctid = ANY(
        ARRAY(
            SELECT identifiers.ctid FROM identifiers
            WHERE identifiers.redirect_end_time <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND redirect_end_time <= now() - :lifetime::interval;

-- name: purge_consents
-- What visitors who have no profile allowed more than a year ago.
DELETE FROM consents
WHERE
    ctid = ANY(
        ARRAY(
            SELECT consents.ctid FROM consents
            WHERE NOT consents.is_profiles AND consents.record_time <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND NOT is_profiles
    AND record_time <= now() - :lifetime::interval;

-- name: purge_visitors
-- How near to a profile visitors were of whom nothing has been heard for 30 days: none of their events is left.
DELETE FROM activation_visitors
WHERE
    ctid = ANY(
        ARRAY(
            SELECT activation_visitors.ctid FROM activation_visitors
            WHERE activation_visitors.active_day <= now() - :lifetime::interval
            LIMIT :count::integer
        )
    )
    AND active_day <= now() - :lifetime::interval;

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

-- name: purge_triggers
-- A few triggers older than 7 days. The highest number is noted, so that a cursor before it is known to have missed some.
WITH over AS (
    SELECT triggers.project_id, triggers.trigger_number
    FROM triggers
    WHERE triggers.create_time <= now() - :lifetime::interval
    LIMIT :count::integer
),

noted AS (
    INSERT INTO trigger_purges (project_id, purged_number)
    SELECT over.project_id, max(over.trigger_number)
    FROM over
    GROUP BY over.project_id
    ON CONFLICT (project_id) DO UPDATE
    SET purged_number = greatest(trigger_purges.purged_number, excluded.purged_number)
)

DELETE FROM triggers
USING over
WHERE triggers.project_id = over.project_id AND triggers.trigger_number = over.trigger_number;
