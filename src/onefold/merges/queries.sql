-- name: lock_profiles
-- Both profiles, held until the end of the transaction and always in this order: two merges of the same two, whichever
-- way round, wait for each other and never deadlock.
SELECT
    profile_id,
    email,
    user_id,
    data_fields::text AS data_fields,
    is_unknown,
    signup_source,
    signup_time,
    profile_update_time,
    create_time,
    update_time,
    cart_event_time
FROM profiles
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid [])
ORDER BY profile_id
FOR UPDATE;

-- name: device_tokens
-- The tokens of a profile, to lock them before its copies are taken over.
SELECT token
FROM devices
WHERE project_id = :project_id AND profile_id = :profile_id
ORDER BY token;

-- name: overlapping_devices
-- The target's own copies of tokens that the source holds too, as they are before the merge: what an undo restores. With
-- the open disables applied: a worker may not find the copy again once the merge has given it a later number.
SELECT
    target.token,
    target.platform,
    target.application_name,
    target.data_fields::text AS data_fields,
    target.endpoint_enabled AND NOT EXISTS (
        SELECT FROM token_disables AS disable
        WHERE
            disable.project_id = :project_id
            AND disable.token = target.token
            AND disable.finish_time IS NULL
            AND disable.operation_number > target.operation_number
    ) AS endpoint_enabled,
    target.operation_number,
    target.is_own,
    greatest(target.operation_number, source.operation_number) AS merged_operation_number,
    target.create_time,
    target.update_time
FROM devices AS target
INNER JOIN devices AS source
    ON source.project_id = target.project_id AND source.profile_id = :source_id AND source.token = target.token
WHERE target.project_id = :project_id AND target.profile_id = :target_id;

-- name: copy_devices
-- Gives the target the union by token; of several copies the one with the newest operation counts. One that an open disable
-- reaches is written as disabled: a merge never re-enables. The sources' rows stay where they are, out of sight without
-- their profiles, and are right again when the merge is undone.
INSERT INTO devices (
    project_id,
    profile_id,
    token,
    platform,
    application_name,
    data_fields,
    endpoint_enabled,
    operation_number,
    create_time,
    update_time
)
SELECT DISTINCT ON (source.token)
    source.project_id,
    :target_id,
    source.token,
    source.platform,
    source.application_name,
    source.data_fields,
    source.endpoint_enabled AND NOT EXISTS (
        SELECT FROM token_disables AS disable
        WHERE
            disable.project_id = :project_id
            AND disable.token = source.token
            AND disable.finish_time IS NULL
            AND disable.operation_number > source.operation_number
    ),
    source.operation_number,
    source.create_time,
    source.update_time
FROM devices AS source
WHERE source.project_id = :project_id AND source.profile_id = ANY(:source_ids::uuid [])
ORDER BY source.token, source.operation_number DESC
ON CONFLICT (project_id, profile_id, token) DO UPDATE
SET
    platform = excluded.platform,
    application_name = excluded.application_name,
    data_fields = excluded.data_fields,
    endpoint_enabled = excluded.endpoint_enabled,
    operation_number = excluded.operation_number,
    update_time = excluded.update_time
WHERE excluded.operation_number > devices.operation_number;

-- name: drop_shared_identifiers
-- Identifiers that lead to both profiles (where several may share one): one row is enough. The target's own stays; of the
-- others the one that leads there for longest, where the source's own counts as what it is about to become.
DELETE FROM identifiers AS spare
USING identifiers AS other
WHERE
    spare.project_id = :project_id
    AND other.project_id = :project_id
    AND other.kind = spare.kind
    AND other.value = spare.value
    AND spare.profile_id = ANY(ARRAY[:source_id::uuid, :target_id::uuid])
    AND other.profile_id = ANY(ARRAY[:source_id::uuid, :target_id::uuid])
    AND other.profile_id <> spare.profile_id
    AND (
        spare.profile_id = :target_id AND spare.redirect_end_time IS NULL,
        coalesce(spare.redirect_end_time, :redirect_end_time::timestamptz, 'infinity'),
        spare.profile_id = :target_id
    ) < (
        other.profile_id = :target_id AND other.redirect_end_time IS NULL,
        coalesce(other.redirect_end_time, :redirect_end_time::timestamptz, 'infinity'),
        other.profile_id = :target_id
    );

-- name: hand_over_identifiers
-- From here on the source's identifiers lead to the target: its anonymous ids for good, its email and user_id until a
-- moment (null: for ever), and those that earlier merges left to it as long as they would have.
UPDATE identifiers
SET
    profile_id = :target_id,
    origin_id = coalesce(origin_id, :source_id),
    redirect_end_time = CASE
        WHEN kind = 3 THEN NULL
        WHEN redirect_end_time IS NOT NULL THEN redirect_end_time
        ELSE coalesce(:redirect_end_time::timestamptz, 'infinity')
    END
WHERE project_id = :project_id AND profile_id = :source_id;

-- name: leave_redirects
-- A profile that is renamed in place is still found by its old names until a moment.
INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive, origin_id, redirect_end_time)
SELECT
    :project_id,
    old.kind,
    old.value,
    :profile_id,
    old.exclusive,
    :profile_id,
    coalesce(:redirect_end_time::timestamptz, 'infinity')
FROM unnest(:kinds::smallint [], :values::text [], :exclusive::boolean []) AS old (kind, value, exclusive)
ON CONFLICT DO NOTHING;

-- name: tell_session
-- The unknownSession event of an unknown profile: made at the moment of its signup, under its id. It lies with the profile,
-- or where a merge had brought it and whence it is still on its way. Found by its key in each of these, never by a scan.
UPDATE events
SET
    data = CASE
        WHEN :was_known::boolean THEN (events.data::jsonb || '{"isUnknownUser": false}')::json
        ELSE (events.data::jsonb - 'isUnknownUser')::json
    END
WHERE
    events.project_id = :project_id
    AND events.profile_id = ANY(
        ARRAY[:source_id::uuid] || ARRAY(
            SELECT moves.container_profile_id
            FROM moves
            WHERE
                moves.project_id = :project_id
                AND moves.owner_profile_id = :owner_id
                AND moves.container_profile_id IS NOT NULL
        )
    )
    AND events.event_time = :event_time
    AND events.event_id = :event_id
    AND events.name = 'unknownSession';

-- name: follow_visitor
-- A merge that told who a visitor is was undone: the ids that a worker had linked follow the visitor again.
UPDATE identifiers
SET grace_end_time = now() + :open_link::interval
FROM merges
WHERE
    identifiers.project_id = :project_id
    AND identifiers.profile_id = :profile_id
    AND identifiers.kind = 3
    AND merges.project_id = :project_id
    AND merges.merge_id = identifiers.merge_id
    AND merges.key_id = '';

-- name: own_identifier
-- Makes an identifier that a merge left to a profile its own (the source filled a gap).
UPDATE identifiers
SET origin_id = NULL, redirect_end_time = NULL
WHERE project_id = :project_id AND profile_id = :profile_id AND kind = :kind AND value = :value;

-- name: delete_profile
DELETE FROM profiles
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: write_profile
-- What a merge, or its undoing, makes of a profile.
UPDATE profiles
SET
    email = :email,
    user_id = :user_id,
    data_fields = :data_fields::json,
    is_unknown = :is_unknown,
    cart_event_time = :cart_event_time,
    profile_update_time = now(),
    update_time = now()
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: restore_profile
-- Brings a source back from its snapshot, as it was.
INSERT INTO profiles (
    project_id,
    profile_id,
    email,
    user_id,
    data_fields,
    is_unknown,
    signup_source,
    signup_time,
    profile_update_time,
    create_time,
    update_time,
    cart_event_time
)
SELECT
    :project_id,
    source.profile_id,
    source.email,
    source.user_id,
    source.data_fields,
    source.is_unknown,
    source.signup_source,
    source.signup_time,
    source.profile_update_time,
    source.create_time,
    now(),
    source.cart_event_time
FROM
    json_to_record(:snapshot::json) AS source (
        profile_id uuid,
        email text,
        user_id text,
        data_fields json,
        is_unknown boolean,
        signup_source smallint,
        signup_time timestamptz,
        profile_update_time timestamptz,
        create_time timestamptz,
        cart_event_time timestamptz
    );

-- name: add_merge
-- The entry in the ledger. origin_ids is everything that belonged to the source: itself, and what merges had brought it.
INSERT INTO merges (
    project_id,
    merge_id,
    kind,
    target_profile_id,
    source_profile_id,
    origin_ids,
    create_time,
    key_id,
    snapshot,
    source_fields,
    target_fields,
    merged_arrays,
    device_count,
    settle_time,
    source_create_time,
    source_signup_source
)
SELECT
    :project_id,
    uuidv7(),
    :kind,
    :target_id,
    :source_id,
    ARRAY[:source_id::uuid] || ARRAY(
        SELECT unnest(earlier.origin_ids)
        FROM merges AS earlier
        WHERE
            earlier.project_id = :project_id
            AND earlier.target_profile_id = :source_id
            AND earlier.kind <> 'CONVERSION'
            AND earlier.undo_time IS NULL
    ),
    now(),
    :key_id,
    :snapshot::json,
    :source_fields::text [],
    :target_fields::text [],
    :merged_arrays::text [],
    :device_count,
    CASE WHEN :kind = 'CONVERSION' THEN now() END,
    CASE WHEN :kind = 'PROFILE' THEN (:snapshot::json #>> '{source,create_time}')::timestamptz END,
    CASE WHEN :kind = 'PROFILE' THEN (:snapshot::json #>> '{source,signup_source}')::smallint END
RETURNING merge_id;

-- name: add_merge_move
-- From here on the source's events are the target's.
INSERT INTO moves (project_id, move_id, merge_id, counted_merge_ids, container_profile_id, owner_profile_id)
VALUES (:project_id, :merge_id, :merge_id, ARRAY[:merge_id::uuid], :source_id, :target_id);

-- name: hand_over_moves
-- And so is what was on its way to the source, also where it already lies with the target (a merge that was undone and
-- made again): a worker finds nothing to move there, and only counts.
UPDATE moves
SET owner_profile_id = :target_id, counted_merge_ids = counted_merge_ids || :merge_id::uuid
WHERE project_id = :project_id AND owner_profile_id = :source_id;

-- name: get_merge
SELECT
    merges.merge_id,
    merges.kind,
    merges.target_profile_id,
    merges.source_profile_id,
    merges.anonymous_id,
    merges.origin_ids,
    merges.create_time,
    merges.key_id,
    merges.snapshot::text AS snapshot,
    merges.snapshot #>> '{source,email}' AS source_email,
    merges.snapshot #>> '{source,user_id}' AS source_user_id,
    merges.source_fields,
    merges.target_fields,
    merges.merged_arrays,
    merges.device_count,
    merges.settle_time,
    merges.undo_time,
    merges.moved_event_count + merges.late_event_count AS event_count,
    least(merges.moved_oldest_event_time, merges.late_oldest_event_time) AS oldest_event_time,
    now() AS now
FROM merges
WHERE merges.project_id = :project_id AND merges.merge_id = :merge_id;

-- name: list_merges
-- A page of the merges that a profile took part in, newest first.
SELECT
    merge_id,
    kind,
    target_profile_id,
    source_profile_id,
    anonymous_id,
    origin_ids,
    create_time,
    key_id,
    snapshot::text AS snapshot,
    snapshot #>> '{source,email}' AS source_email,
    snapshot #>> '{source,user_id}' AS source_user_id,
    source_fields,
    target_fields,
    merged_arrays,
    device_count,
    settle_time,
    undo_time,
    moved_event_count + late_event_count AS event_count,
    least(moved_oldest_event_time, late_oldest_event_time) AS oldest_event_time,
    now() AS now
FROM merges
WHERE
    project_id = :project_id
    AND (target_profile_id = :profile_id OR source_profile_id = :profile_id)
    AND merge_id < :before_id
ORDER BY merge_id DESC
LIMIT :count::integer;

-- name: find_later_merge
-- A merge that took the target of this one away: it must be undone first.
SELECT merge_id
FROM merges
WHERE
    project_id = :project_id
    AND source_profile_id = :target_id
    AND merge_id > :merge_id
    AND undo_time IS NULL
ORDER BY merge_id DESC
LIMIT 1;

-- name: later_merges_into
-- Merges into the same target after one, whose snapshots hold what that one made of the target's fields.
SELECT merge_id, snapshot::text AS snapshot
FROM merges
WHERE
    project_id = :project_id
    AND target_profile_id = :target_id
    AND merge_id > :merge_id
    AND kind = 'PROFILE'
    AND undo_time IS NULL
    AND snapshot IS NOT NULL;

-- name: rewrite_snapshot
UPDATE merges
SET snapshot = :snapshot::json
WHERE project_id = :project_id AND merge_id = :merge_id;

-- name: mark_undone
UPDATE merges
SET undo_time = now(), settle_time = coalesce(settle_time, now())
WHERE project_id = :project_id AND merge_id = :merge_id;

-- name: take_back_redirects
-- The source's own names, as the merge left them, go; it claims them anew. Names that the source had been left itself
-- stay and are handed back.
DELETE FROM identifiers
USING unnest(:kinds::smallint [], :values::text []) AS own (kind, value)
WHERE
    identifiers.project_id = :project_id
    AND identifiers.profile_id = :target_id
    AND identifiers.kind = own.kind
    AND identifiers.value = own.value
    AND identifiers.redirect_end_time IS NOT NULL;

-- name: release_identifier
DELETE FROM identifiers
WHERE project_id = :project_id AND kind = :kind AND value = :value AND profile_id = :profile_id;

-- name: hand_back_identifiers
-- The anonymous ids, and the names left to the source by merges before, lead to the source again.
UPDATE identifiers
SET profile_id = :source_id
WHERE project_id = :project_id AND profile_id = :target_id AND origin_id = ANY(:origin_ids::uuid []);

-- name: drop_move
-- What has not been moved yet need not be: it lies with its owner again.
DELETE FROM moves
WHERE project_id = :project_id AND move_id = :move_id;

-- name: drop_intent
-- Waits for the chunk that is being moved, if there is one.
DELETE FROM intents
WHERE project_id = :project_id AND intent_id = :intent_id;

-- name: hand_back_moves
-- What was on its way to the target because the source had it by merges before is the source's again.
UPDATE moves
SET owner_profile_id = :source_id, counted_merge_ids = array_remove(moves.counted_merge_ids, :merge_id::uuid)
FROM merges
WHERE
    moves.project_id = :project_id
    AND moves.owner_profile_id = :target_id
    AND moves.origin_ids IS NULL
    AND merges.project_id = :project_id
    AND merges.merge_id = moves.merge_id
    AND merges.origin_ids && :origin_ids::uuid [];

-- name: split_given_back
-- What is being given back to the target, as far as it came from the source, is being given back to the source: such an
-- entry is split in two. Returns the new entries.
WITH given_back AS (
    SELECT
        moves.move_id,
        moves.merge_id,
        moves.container_profile_id,
        moves.counted_merge_ids,
        ARRAY(SELECT unnest(moves.origin_ids) INTERSECT SELECT unnest(:origin_ids::uuid [])) AS theirs,
        ARRAY(SELECT unnest(moves.origin_ids) EXCEPT SELECT unnest(:origin_ids::uuid [])) AS others
    FROM moves
    WHERE
        moves.project_id = :project_id
        AND moves.owner_profile_id = :target_id
        AND moves.origin_ids && :origin_ids::uuid []
),

reduced AS (
    UPDATE moves
    SET origin_ids = given_back.others
    FROM given_back
    WHERE moves.project_id = :project_id AND moves.move_id = given_back.move_id
)

INSERT INTO moves (
    project_id,
    move_id,
    merge_id,
    counted_merge_ids,
    container_profile_id,
    origin_ids,
    owner_profile_id,
    owner_subject_id
)
SELECT
    :project_id,
    uuidv7(),
    given_back.merge_id,
    array_remove(given_back.counted_merge_ids, :merge_id::uuid),
    given_back.container_profile_id,
    given_back.theirs,
    :owner_profile_id,
    :owner_subject_id
FROM given_back
-- What lies with the target itself is the next entry's, which takes all that came from the source there.
WHERE given_back.container_profile_id <> :target_id
RETURNING move_id;

-- name: add_undo_move
-- What came from the source is the source's again, wherever the worker had moved it.
INSERT INTO moves (
    project_id, move_id, merge_id, container_profile_id, origin_ids, owner_profile_id, owner_subject_id
)
VALUES (
    :project_id, uuidv7(), :merge_id, :target_id, :origin_ids::uuid [], :owner_profile_id, :owner_subject_id
)
RETURNING move_id;

-- name: free_anonymous_id
-- The id of an association that is undone may be linked anew. What its visitor has done is to be counted anew, too.
WITH counted AS (
    DELETE FROM activation_visitors
    WHERE activation_visitors.project_id = :project_id AND activation_visitors.subject_id = :subject_id
)

DELETE FROM identifiers
WHERE project_id = :project_id AND kind = 3 AND value = :anonymous_id AND merge_id = :merge_id;

-- name: device_numbers
-- The newest operations on some of a profile's copies.
SELECT token, operation_number
FROM devices
WHERE project_id = :project_id AND profile_id = :profile_id AND token = ANY(:tokens::text []);

-- name: other_sources
-- The profiles that are merged into one beside the source of a merge.
SELECT source_profile_id
FROM merges
WHERE
    project_id = :project_id
    AND target_profile_id = :target_id
    AND merge_id <> :merge_id
    AND kind = 'PROFILE'
    AND undo_time IS NULL;

-- name: remove_returned_devices
-- Undoing: the target loses the copies that only merges gave it; those of profiles that stay merged into it are given to
-- it anew. One that it has registered itself since stays, on or off. Of one registered by a version that did not note whose
-- it is that is told by its being on, under a number that no source has.
DELETE FROM devices AS target
USING devices AS source
WHERE
    target.project_id = :project_id
    AND target.profile_id = :target_id
    AND source.project_id = :project_id
    AND source.profile_id = :source_id
    AND source.token = target.token
    AND NOT target.token = ANY(:overlapping::text [])
    AND NOT target.is_own
    AND (
        NOT target.endpoint_enabled
        OR EXISTS (
            SELECT FROM token_disables AS disable
            WHERE
                disable.project_id = :project_id
                AND disable.token = target.token
                AND disable.finish_time IS NULL
                AND disable.operation_number > target.operation_number
        )
        OR EXISTS (
            SELECT FROM devices AS part
            WHERE
                part.project_id = :project_id
                AND part.profile_id = ANY(:source_ids::uuid [])
                AND part.token = target.token
                AND part.operation_number >= target.operation_number
        )
    );

-- name: restore_device
-- Undoing: a copy that the target had before is as it was, unless it was registered or disabled since.
UPDATE devices
SET
    platform = :platform,
    application_name = :application_name,
    data_fields = :data_fields::json,
    endpoint_enabled = :endpoint_enabled,
    operation_number = :operation_number,
    update_time = :update_time
WHERE
    project_id = :project_id
    AND profile_id = :target_id
    AND token = :token
    AND operation_number <= :merged_operation_number;

-- name: count_devices
SELECT count(*)
FROM devices
WHERE project_id = :project_id AND profile_id = :profile_id;
