-- name: note
-- The moment is the one at which the row is written: a token's lock is held by then, so what happened to a token is noted
-- in the order in which it took effect.
INSERT INTO activities (
    project_id, activity_time, kind, profile_id, token, platform, identifiers_blocked, kept_by_profile_id
)
VALUES (
    :project_id,
    clock_timestamp(),
    :kind,
    :profile_id,
    :token,
    :platform,
    :identifiers_blocked,
    :kept_by_profile_id
);

-- name: merged_profiles
-- What was merged into a person and is part of it now, with what had been merged into that.
SELECT DISTINCT unnest(merges.origin_ids) AS profile_id
FROM merges
WHERE
    merges.project_id = :project_id
    AND merges.target_profile_id = :profile_id
    AND merges.kind = 'PROFILE'
    AND merges.undo_time IS NULL;

-- name: survivors
-- Who has become of profiles: themselves, or those they were merged into. Of one that was forgotten nobody.
WITH RECURSIVE path (profile_id, survivor_id) AS (
    SELECT asked.profile_id, asked.profile_id
    FROM unnest(:profile_ids::uuid []) AS asked (profile_id)
    UNION
    SELECT path.profile_id, merges.target_profile_id
    FROM path
    INNER JOIN merges
        ON
            merges.project_id = :project_id
            AND merges.source_profile_id = path.survivor_id
            AND merges.kind = 'PROFILE'
            AND merges.undo_time IS NULL
)

SELECT path.profile_id, path.survivor_id
FROM path
WHERE
    EXISTS (
        SELECT FROM profiles WHERE profiles.project_id = :project_id AND profiles.profile_id = path.survivor_id
    );

-- name: created_of_person
-- When a person and the profiles that are part of it were made, newest first.
SELECT made.profile_id, made.create_time, made.signup_source, made.profile_id AS owner_profile_id
FROM (
    SELECT profiles.profile_id, profiles.create_time, profiles.signup_source
    FROM profiles
    WHERE profiles.project_id = :project_id AND profiles.profile_id = ANY(:profile_ids::uuid [])
    UNION ALL
    SELECT merges.source_profile_id, merges.source_create_time, merges.source_signup_source
    FROM merges
    WHERE
        merges.project_id = :project_id
        AND merges.source_profile_id = ANY(:profile_ids::uuid [])
        AND merges.source_create_time IS NOT NULL
        AND merges.undo_time IS NULL
) AS made
WHERE
    (made.create_time, made.profile_id) < (:before_time::timestamptz, :before_id::uuid)
    AND made.create_time >= :start_time::timestamptz
ORDER BY made.create_time DESC, made.profile_id DESC
LIMIT :count::integer;

-- name: created_of_project
-- The same of a project: of profiles that are there, and of those that were merged, with whom they belong to.
SELECT made.profile_id, made.create_time, made.signup_source, made.owner_profile_id
FROM (
    (
        SELECT
            profiles.profile_id,
            profiles.create_time,
            profiles.signup_source,
            profiles.profile_id AS owner_profile_id
        FROM profiles
        WHERE
            profiles.project_id = :project_id
            AND (profiles.create_time, profiles.profile_id) < (:before_time::timestamptz, :before_id::uuid)
            AND profiles.create_time >= :start_time::timestamptz
            AND profiles.create_time > '-infinity'
        ORDER BY profiles.create_time DESC, profiles.profile_id DESC
        LIMIT :count::integer
    )
    UNION ALL
    (
        SELECT
            merges.source_profile_id,
            merges.source_create_time,
            merges.source_signup_source,
            merges.target_profile_id
        FROM merges
        WHERE
            merges.project_id = :project_id
            AND (merges.source_create_time, merges.source_profile_id) < (:before_time::timestamptz, :before_id::uuid)
            AND merges.source_create_time >= :start_time::timestamptz
            AND merges.source_create_time > '-infinity'
            AND merges.undo_time IS NULL
        ORDER BY merges.source_create_time DESC, merges.source_profile_id DESC
        LIMIT :count::integer
    )
) AS made
ORDER BY made.create_time DESC, made.profile_id DESC
LIMIT :count::integer;

-- name: ledger_of_person
-- The merges into a person or a part of it, newest first; and those of a part of it into somebody else that were undone.
SELECT
    entry.merge_id,
    entry.kind,
    entry.source_profile_id,
    entry.target_profile_id,
    entry.anonymous_id,
    entry.create_time,
    entry.undo_time,
    entry.settle_time,
    entry.event_count,
    entry.oldest_event_time
FROM unnest(:profile_ids::uuid []) AS member (profile_id)
CROSS JOIN LATERAL (
    (
        SELECT
            merges.merge_id,
            merges.kind,
            merges.source_profile_id,
            merges.target_profile_id,
            merges.anonymous_id,
            merges.create_time,
            merges.undo_time,
            merges.settle_time,
            merges.moved_event_count + merges.late_event_count AS event_count,
            least(merges.moved_oldest_event_time, merges.late_oldest_event_time) AS oldest_event_time
        FROM merges
        WHERE
            merges.project_id = :project_id
            AND merges.target_profile_id = member.profile_id
            AND (merges.create_time, merges.merge_id) < (:before_time::timestamptz, :before_id::uuid)
            AND merges.create_time >= :start_time::timestamptz
            AND merges.create_time > '-infinity'
        ORDER BY merges.create_time DESC, merges.merge_id DESC
        LIMIT :count::integer
    )
    UNION ALL
    (
        SELECT
            merges.merge_id,
            merges.kind,
            merges.source_profile_id,
            merges.target_profile_id,
            merges.anonymous_id,
            merges.create_time,
            merges.undo_time,
            merges.settle_time,
            merges.moved_event_count + merges.late_event_count,
            least(merges.moved_oldest_event_time, merges.late_oldest_event_time)
        FROM merges
        WHERE
            merges.project_id = :project_id
            AND merges.source_profile_id = member.profile_id
            AND merges.undo_time IS NOT NULL
            AND merges.target_profile_id <> ALL(:profile_ids::uuid [])
            AND (merges.create_time, merges.merge_id) < (:before_time::timestamptz, :before_id::uuid)
            AND merges.create_time >= :start_time::timestamptz
    )
) AS entry
ORDER BY entry.create_time DESC, entry.merge_id DESC
LIMIT :count::integer;

-- name: ledger_of_project
-- The merges of a project, newest first.
SELECT
    merge_id,
    kind,
    source_profile_id,
    target_profile_id,
    anonymous_id,
    create_time,
    undo_time,
    settle_time,
    moved_event_count + late_event_count AS event_count,
    least(moved_oldest_event_time, late_oldest_event_time) AS oldest_event_time
FROM merges
WHERE
    project_id = :project_id
    AND (create_time, merge_id) < (:before_time::timestamptz, :before_id::uuid)
    AND create_time >= :start_time::timestamptz
    AND create_time > '-infinity'
ORDER BY create_time DESC, merge_id DESC
LIMIT :count::integer;

-- name: remaining_events
-- What a worker has still to bring for associations: how many events, as far as it is worth counting, and the oldest. A
-- chunk counts in the ledger what it moves, so the two together are the same at every moment.
SELECT
    asked.merge_id,
    count(event.event_time) AS event_count,
    min(event.event_time) AS oldest_event_time
FROM unnest(:merge_ids::uuid [], :profile_ids::uuid []) AS asked (merge_id, profile_id)
INNER JOIN moves
    ON
        moves.project_id = :project_id
        AND moves.owner_profile_id = asked.profile_id
        AND asked.merge_id = ANY(moves.counted_merge_ids)
CROSS JOIN LATERAL (
    (
        SELECT anonymous_events.event_time
        FROM anonymous_events
        WHERE
            anonymous_events.project_id = :project_id
            AND anonymous_events.subject_id = moves.container_subject_id
            AND anonymous_events.receive_time > moves.window_start_time
            AND anonymous_events.receive_time <= moves.window_end_time
            AND anonymous_events.event_time > moves.alive_after
        ORDER BY anonymous_events.event_time, anonymous_events.event_id
        LIMIT :count::integer
    )
    UNION ALL
    (
        -- Linked again while it was still being given back.
        SELECT events.event_time
        FROM unnest(moves.origin_ids) AS origin (origin_id)
        INNER JOIN events
            ON
                events.project_id = :project_id
                AND events.profile_id = moves.container_profile_id
                AND events.origin_id = origin.origin_id
                AND events.event_time > moves.alive_after
        ORDER BY events.event_time, events.event_id
        LIMIT :count::integer
    )
) AS event
GROUP BY asked.merge_id;

-- name: notes_of_person
-- What was noted about a person and the parts of it, newest first; and what happened to all holders of a token that the
-- person held then, unless it was left to the person by an exclusive registration.
SELECT
    noted.activity_time,
    noted.activity_id,
    noted.kind,
    noted.profile_id,
    noted.token,
    noted.platform,
    noted.identifiers_blocked
FROM (
    SELECT
        own.activity_time,
        own.activity_id,
        own.kind,
        own.profile_id,
        own.token,
        own.platform,
        own.identifiers_blocked
    FROM unnest(:profile_ids::uuid []) AS member (profile_id)
    CROSS JOIN LATERAL (
        SELECT
            activities.activity_time,
            activities.activity_id,
            activities.kind,
            activities.profile_id,
            activities.token,
            activities.platform,
            activities.identifiers_blocked
        FROM activities
        WHERE
            activities.project_id = :project_id
            AND activities.profile_id = member.profile_id
            AND (activities.activity_time, activities.activity_id) < (:before_time::timestamptz, :before_id::uuid)
            AND activities.activity_time >= :start_time::timestamptz
        ORDER BY activities.activity_time DESC, activities.activity_id DESC
        LIMIT :count::integer
    ) AS own
    UNION ALL
    SELECT
        for_all.activity_time,
        for_all.activity_id,
        for_all.kind,
        for_all.profile_id,
        held.token,
        held.platform,
        for_all.identifiers_blocked
    FROM (
        SELECT
            devices.token,
            min(devices.create_time) AS create_time,
            (array_agg(devices.platform ORDER BY devices.operation_number DESC))[1] AS platform
        FROM devices
        WHERE devices.project_id = :project_id AND devices.profile_id = ANY(:profile_ids::uuid [])
        GROUP BY devices.token
    ) AS held
    CROSS JOIN LATERAL (
        SELECT
            activities.activity_time,
            activities.activity_id,
            activities.kind,
            activities.profile_id,
            activities.identifiers_blocked
        FROM activities
        WHERE
            activities.project_id = :project_id
            AND activities.profile_id IS NULL
            AND activities.token = held.token
            AND activities.activity_time >= held.create_time
            AND (activities.kept_by_profile_id = ANY(:profile_ids::uuid [])) IS NOT TRUE
            AND (activities.activity_time, activities.activity_id) < (:before_time::timestamptz, :before_id::uuid)
            AND activities.activity_time >= :start_time::timestamptz
        ORDER BY activities.activity_time DESC, activities.activity_id DESC
        LIMIT :count::integer
    ) AS for_all
) AS noted
ORDER BY noted.activity_time DESC, noted.activity_id DESC
LIMIT :count::integer;

-- name: notes_of_project
-- What was noted in a project, newest first.
SELECT activity_time, activity_id, kind, profile_id, token, platform, identifiers_blocked
FROM activities
WHERE
    project_id = :project_id
    AND (activity_time, activity_id) < (:before_time::timestamptz, :before_id::uuid)
    AND activity_time >= :start_time::timestamptz
ORDER BY activity_time DESC, activity_id DESC
LIMIT :count::integer;

-- name: events_on_the_move
-- Whether anonymous rows belong to people, or people's rows to visitors, because a worker has not moved them yet.
SELECT
    EXISTS (
        SELECT FROM moves
        WHERE
            moves.project_id = :project_id
            AND moves.owner_profile_id IS NOT NULL
            AND moves.container_subject_id IS NOT NULL
    ) AS to_people,
    EXISTS (
        SELECT FROM moves WHERE moves.project_id = :project_id AND moves.owner_subject_id IS NOT NULL
    ) AS to_visitors;

-- name: events_of_project
-- The keys of people's events, newest first, and whose each is at this moment, as open moves say: a person's, a visitor's
-- (given back by an undo), or nobody's any more, which is passed over by the reader. What is being given back from a
-- timeline comes before what is being taken away from it as a whole.
WITH page AS MATERIALIZED (
    SELECT events.event_time, events.event_id, events.profile_id, events.origin_id
    FROM events
    WHERE
        events.project_id = :project_id
        AND (events.event_time, events.event_id) < (:before_time::timestamptz, :before_id::text)
        AND events.event_time >= :start_time::timestamptz
        AND events.event_time > '-infinity'
    ORDER BY events.event_time DESC, events.event_id DESC
    LIMIT :count::integer
),

-- Read once for the whole page.
open_moves AS MATERIALIZED (
    SELECT
        moves.container_profile_id,
        moves.origin_ids,
        moves.owner_profile_id,
        moves.owner_subject_id,
        moves.alive_after
    FROM moves
    WHERE
        moves.project_id = :project_id
        AND moves.container_profile_id = ANY(ARRAY(SELECT DISTINCT page.profile_id FROM page))
)

SELECT
    page.event_time,
    page.event_id,
    page.profile_id AS container_id,
    CASE WHEN move.alive_after IS NULL THEN page.profile_id ELSE move.owner_profile_id END AS owner_profile_id,
    CASE
        WHEN move.alive_after IS NULL THEN true
        WHEN move.owner_profile_id IS NOT NULL THEN page.event_time > move.alive_after
        WHEN move.owner_subject_id IS NOT NULL THEN page.event_time > now() - :lifetime::interval
        ELSE false
    END AS is_there
FROM page
LEFT JOIN LATERAL (
    SELECT open_moves.owner_profile_id, open_moves.owner_subject_id, open_moves.alive_after
    FROM open_moves
    WHERE
        open_moves.container_profile_id = page.profile_id
        AND (open_moves.origin_ids IS NULL OR page.origin_id = ANY(open_moves.origin_ids))
    ORDER BY open_moves.origin_ids IS NULL
    LIMIT 1
) AS move ON true
ORDER BY page.event_time DESC, page.event_id DESC;

-- name: anonymous_events_of_project
-- The same of visitors' events: a person's where an open move gives them to one, and nobody's by the rule that
-- list_anonymous_events has for one visitor.
WITH page AS MATERIALIZED (
    SELECT
        anonymous_events.event_time,
        anonymous_events.event_id,
        anonymous_events.subject_id,
        anonymous_events.receive_time,
        anonymous_events.anonymous_id
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND (anonymous_events.event_time, anonymous_events.event_id) < (:before_time::timestamptz, :before_id::text)
        AND anonymous_events.event_time <= :before_time::timestamptz
        AND anonymous_events.event_time >= :start_time::timestamptz
        AND anonymous_events.event_time > '-infinity'
    ORDER BY anonymous_events.event_time DESC, anonymous_events.event_id DESC
    LIMIT :count::integer
),

-- Read once for the whole page, and so are the links.
open_moves AS MATERIALIZED (
    SELECT
        moves.container_subject_id,
        moves.owner_profile_id,
        moves.window_start_time,
        moves.window_end_time,
        moves.alive_after
    FROM moves
    WHERE
        moves.project_id = :project_id
        AND moves.container_subject_id = ANY(ARRAY(SELECT DISTINCT page.subject_id FROM page))
),

ends AS (
    SELECT open_moves.container_subject_id AS subject_id, max(open_moves.window_end_time) AS window_end_time
    FROM open_moves
    GROUP BY open_moves.container_subject_id
),

links AS MATERIALIZED (
    SELECT identifiers.value AS anonymous_id, identifiers.grace_end_time
    FROM identifiers
    WHERE
        identifiers.project_id = :project_id
        AND identifiers.kind = 3
        AND identifiers.value = ANY(ARRAY(SELECT DISTINCT page.anonymous_id FROM page))
)

SELECT
    page.event_time,
    page.event_id,
    page.subject_id AS container_id,
    given.owner_profile_id,
    given.owner_profile_id IS NOT NULL OR (
        page.event_time > now() - :lifetime::interval
        AND page.receive_time > coalesce(ends.window_end_time, links.grace_end_time, '-infinity')
    ) AS is_there
FROM page
LEFT JOIN ends ON ends.subject_id = page.subject_id
LEFT JOIN links ON links.anonymous_id = page.anonymous_id
LEFT JOIN LATERAL (
    SELECT open_moves.owner_profile_id
    FROM open_moves
    WHERE
        open_moves.container_subject_id = page.subject_id
        AND open_moves.owner_profile_id IS NOT NULL
        AND page.receive_time > open_moves.window_start_time
        AND page.receive_time <= open_moves.window_end_time
        AND page.event_time > open_moves.alive_after
    LIMIT 1
) AS given ON true
ORDER BY page.event_time DESC, page.event_id DESC;

-- name: invites_of_project
-- The same of invites, which are nobody's: those that are not being erased because the address was forgotten.
WITH page AS MATERIALIZED (
    SELECT invite_events.event_time, invite_events.event_id, invite_events.recipient, invite_events.receive_time
    FROM invite_events
    WHERE
        invite_events.project_id = :project_id
        AND (invite_events.event_time, invite_events.event_id) < (:before_time::timestamptz, :before_id::text)
        AND invite_events.event_time >= :start_time::timestamptz
        AND invite_events.event_time > '-infinity'
    ORDER BY invite_events.event_time DESC, invite_events.event_id DESC
    LIMIT :count::integer
),

ends AS (
    SELECT moves.container_recipient AS recipient, max(moves.window_end_time) AS window_end_time
    FROM moves
    WHERE
        moves.project_id = :project_id
        AND moves.container_recipient = ANY(ARRAY(SELECT DISTINCT page.recipient FROM page))
    GROUP BY moves.container_recipient
)

SELECT
    page.event_time,
    page.event_id,
    page.recipient,
    page.receive_time > coalesce(ends.window_end_time, '-infinity') AS is_there
FROM page
LEFT JOIN ends ON ends.recipient = page.recipient
ORDER BY page.event_time DESC, page.event_id DESC;

-- name: invites
-- What invites hold that were found by the statement before.
SELECT
    invite_events.recipient,
    invite_events.event_time,
    invite_events.event_id,
    invite_events.receive_time,
    invite_events.kind,
    invite_events.name,
    invite_events.data
FROM
    unnest(:recipients::text [], :event_times::timestamptz [], :event_ids::text [])
        AS wanted (recipient, event_time, event_id)
INNER JOIN invite_events
    ON
        invite_events.project_id = :project_id
        AND invite_events.recipient = wanted.recipient
        AND invite_events.event_time = wanted.event_time
        AND invite_events.event_id = wanted.event_id;

-- name: contents
-- What people's and visitors' events hold that were found by the two statements before.
SELECT
    wanted.container_id,
    event.event_time,
    event.event_id,
    event.receive_time,
    event.kind,
    event.was_anonymous,
    event.name,
    event.anonymous_id,
    event.data
FROM
    unnest(:container_ids::uuid [], :event_times::timestamptz [], :event_ids::text [])
        AS wanted (container_id, event_time, event_id)
CROSS JOIN LATERAL (
    SELECT
        events.event_time,
        events.event_id,
        events.receive_time,
        events.kind,
        events.was_anonymous,
        events.name,
        events.anonymous_id,
        events.data
    FROM events
    WHERE
        events.project_id = :project_id
        AND events.profile_id = wanted.container_id
        AND events.event_time = wanted.event_time
        AND events.event_id = wanted.event_id
    UNION ALL
    SELECT
        anonymous_events.event_time,
        anonymous_events.event_id,
        anonymous_events.receive_time,
        anonymous_events.kind,
        true,
        anonymous_events.name,
        anonymous_events.anonymous_id,
        anonymous_events.data
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = wanted.container_id
        AND anonymous_events.event_time = wanted.event_time
        AND anonymous_events.event_id = wanted.event_id
) AS event;
