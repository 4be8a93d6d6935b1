-- name: block
-- Keeps identifiers from coming back. One that is blocked already stays as it is.
INSERT INTO forgotten (project_id, hash, kind, forget_id, forget_time)
SELECT :project_id, new.hash, new.kind, :forget_id, now()
FROM unnest(:hashes::bytea [], :kinds::smallint []) AS new (hash, kind)
ON CONFLICT DO NOTHING;

-- name: find_blocked
SELECT hash, kind, forget_time
FROM forgotten
WHERE project_id = :project_id AND hash = ANY(:hashes::bytea [])
ORDER BY hash;

-- name: unblock
-- Everything that was blocked together with one of these.
DELETE FROM forgotten
WHERE
    project_id = :project_id
    AND forget_id IN (
        SELECT named.forget_id FROM forgotten AS named
        WHERE named.project_id = :project_id AND named.hash = ANY(:hashes::bytea [])
    )
RETURNING hash;

-- name: endless_erasures
-- Addresses whose invites are being erased, those that are still on their way included.
SELECT move_id, container_recipient
FROM moves
WHERE project_id = :project_id AND container_recipient IS NOT NULL AND window_end_time = 'infinity';

-- name: end_erasures
-- The address may be used again: what is received from now on is not erased.
UPDATE moves
SET window_end_time = now()
WHERE project_id = :project_id AND move_id = ANY(:move_ids::uuid []);

-- name: list_forgotten
SELECT hash, kind, forget_time
FROM forgotten
WHERE project_id = :project_id AND hash > :after_hash
ORDER BY hash
LIMIT :count::integer;

-- name: new_forget_id
SELECT uuidv7();

-- name: hold_identifiers
-- Claims identifiers that nobody has, so that whoever is just about to claim one waits, and then finds it blocked. They
-- are let go by the next statement.
INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT :project_id, free.kind, free.value, '00000000-0000-0000-0000-000000000000', true
FROM unnest(:kinds::smallint [], :values::text []) AS free (kind, value)
ORDER BY free.kind, free.value
ON CONFLICT DO NOTHING;

-- name: let_identifiers_go
DELETE FROM identifiers
WHERE project_id = :project_id AND profile_id = '00000000-0000-0000-0000-000000000000';

-- name: lock_profile
SELECT profile_id
FROM profiles
WHERE project_id = :project_id AND profile_id = :profile_id
FOR UPDATE;

-- name: identifiers_of
-- Everything that leads to a profile, the names that merges left to it included.
SELECT kind, value, exclusive, origin_id
FROM identifiers
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: delete_identifiers
DELETE FROM identifiers
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: delete_profile
DELETE FROM profiles
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: delete_devices
-- The person's copies, and those of profiles merged into it, which are kept for an undo.
DELETE FROM devices
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid [])
RETURNING token;

-- name: delete_disables
-- The disables of tokens that nobody holds any more; a worker that is at one finds nothing left to do.
DELETE FROM token_disables
WHERE
    project_id = :project_id
    AND token = ANY(:tokens::text [])
    AND NOT EXISTS (
        SELECT FROM devices WHERE devices.project_id = :project_id AND devices.token = token_disables.token
    );

-- name: delete_token_notes
-- And what the activity log has of them.
DELETE FROM activities
WHERE
    project_id = :project_id
    AND profile_id IS NULL
    AND token = ANY(:tokens::text [])
    AND NOT EXISTS (
        SELECT FROM devices WHERE devices.project_id = :project_id AND devices.token = activities.token
    );

-- name: merged_profiles
-- What has become part of a person: the profiles and subjects of merges that were not undone.
SELECT DISTINCT unnest(merges.origin_ids) AS origin_id
FROM merges
WHERE merges.project_id = :project_id AND merges.target_profile_id = :profile_id AND merges.undo_time IS NULL;

-- name: empty_ledger
-- The entries stay as evidence that something happened and when; what they say about the person goes.
UPDATE merges
SET snapshot = NULL, anonymous_id = NULL, source_fields = '{}', target_fields = '{}', merged_arrays = '{}'
WHERE
    project_id = :project_id
    AND (target_profile_id = ANY(:profile_ids::uuid []) OR source_profile_id = ANY(:profile_ids::uuid []));

-- name: delete_activation
-- What the person and their visitors allowed, and how near to a profile the visitors were.
WITH visitors AS (
    DELETE FROM activation_visitors
    WHERE activation_visitors.project_id = :project_id AND activation_visitors.subject_id = ANY(:holder_ids::uuid [])
)

DELETE FROM consents
WHERE project_id = :project_id AND holder_id = ANY(:holder_ids::uuid []);

-- name: empty_undone
-- The person's visitors' ids also stand in associations with others that were undone.
UPDATE merges
SET anonymous_id = NULL
WHERE project_id = :project_id AND undo_time IS NOT NULL AND anonymous_id = ANY(:anonymous_ids::text []);

-- name: delete_answers
-- Stored answers hold identifiers; a request of the person sent again is refused like any other.
DELETE FROM requests
WHERE project_id = :project_id AND profile_ids && :profile_ids::uuid [];

-- name: disown_moves
-- What was on its way to the person is erased instead; of a linked id only what had been received, not what the grace
-- would still have brought.
UPDATE moves
SET
    owner_profile_id = NULL,
    merge_id = NULL,
    counted_merge_ids = '{}',
    window_end_time = CASE
        WHEN container_subject_id IS NULL THEN window_end_time
        ELSE least(window_end_time, now())
    END
WHERE project_id = :project_id AND owner_profile_id = :profile_id;

-- name: add_erasures
-- The person's rows, and those of their anonymous ids received until now, are erased by a worker.
INSERT INTO moves (project_id, move_id, container_profile_id, container_subject_id, window_end_time)
SELECT
    :project_id,
    uuidv7(),
    container.profile_id,
    container.subject_id,
    CASE WHEN container.subject_id IS NULL THEN 'infinity' ELSE now() END
FROM unnest(:profile_ids::uuid [], :subject_ids::uuid []) AS container (profile_id, subject_id)
RETURNING move_id;

-- name: add_invite_erasures
-- The invites sent to addresses are erased by a worker. Of one that is blocked also those whose transaction is under way;
-- else those received until now, if there are any and nobody has the address any more.
INSERT INTO moves (project_id, move_id, container_recipient, window_end_time)
SELECT
    :project_id,
    uuidv7(),
    address.recipient,
    CASE WHEN :blocked::boolean THEN 'infinity' ELSE now() END
FROM unnest(:recipients::text []) AS address (recipient)
WHERE
    :blocked
    OR (
        EXISTS (
            SELECT FROM invite_events AS invite
            WHERE invite.project_id = :project_id AND invite.recipient = address.recipient
        )
        AND NOT EXISTS (
            SELECT FROM identifiers AS holder
            WHERE
                holder.project_id = :project_id
                AND holder.kind = 1
                AND holder.value = address.recipient
                AND holder.redirect_end_time IS NULL
        )
    )
RETURNING move_id, container_recipient;
