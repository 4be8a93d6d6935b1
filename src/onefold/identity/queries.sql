-- name: find_holders
-- Who holds each identifier of a batch, and the moment: one row per identifier asked for, with a null profile_id where
-- nobody does. Of several holders the oldest, which is the one with the lowest profile_id. The database's clock comes
-- along because whoever asks is about to decide by it. holder_count is counted only when asked for.
SELECT
    wanted.kind,
    wanted.value,
    holder.profile_id,
    holder.merge_id,
    holder.link_time,
    holder.grace_end_time,
    profile.email,
    profile.user_id,
    now() AS now,
    CASE
        WHEN :count_holders::boolean
            THEN (
                SELECT count(*)
                FROM identifiers AS other
                WHERE other.project_id = :project_id AND other.kind = wanted.kind AND other.value = wanted.value
            )
    END AS holder_count
FROM unnest(:kinds::smallint [], :values::text []) AS wanted (kind, value)
LEFT JOIN LATERAL (
    SELECT identifiers.profile_id, identifiers.merge_id, identifiers.link_time, identifiers.grace_end_time
    FROM identifiers
    WHERE
        identifiers.project_id = :project_id
        AND identifiers.kind = wanted.kind
        AND identifiers.value = wanted.value
    ORDER BY identifiers.profile_id
    LIMIT 1
) AS holder ON true
LEFT JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = holder.profile_id;

-- name: get_profile
-- Everything about one person.
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
    update_time
FROM profiles
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: profile_exists
SELECT EXISTS (SELECT FROM profiles WHERE project_id = :project_id AND profile_id = :profile_id);

-- name: find_profiles
-- Everything about the (oldest) holder of each identifier: look-up and read in one statement and so of one moment.
SELECT
    wanted.kind,
    wanted.value,
    profile.profile_id,
    profile.email,
    profile.user_id,
    profile.data_fields::text AS data_fields,
    profile.is_unknown,
    profile.signup_source,
    profile.signup_time,
    profile.profile_update_time,
    profile.create_time,
    profile.update_time,
    CASE
        WHEN :count_holders::boolean
            THEN (
                SELECT count(*)
                FROM identifiers AS other
                WHERE other.project_id = :project_id AND other.kind = wanted.kind AND other.value = wanted.value
            )
    END AS holder_count
FROM unnest(:kinds::smallint [], :values::text []) AS wanted (kind, value)
CROSS JOIN LATERAL (
    SELECT identifiers.profile_id
    FROM identifiers
    WHERE
        identifiers.project_id = :project_id
        AND identifiers.kind = wanted.kind
        AND identifiers.value = wanted.value
    ORDER BY identifiers.profile_id
    LIMIT 1
) AS holder
INNER JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = holder.profile_id;

-- name: new_profile_ids
-- Ids by the database's clock, so that "the oldest holder" does not depend on a server's.
SELECT uuidv7() AS profile_id
FROM generate_series(1, :count::integer);

-- name: lock_profile
-- Holds a profile until the end of the transaction, and reads what the update builds on.
SELECT email, user_id, data_fields::text AS data_fields
FROM profiles
WHERE project_id = :project_id AND profile_id = :profile_id
FOR UPDATE;

-- name: lock_profiles
-- The same for the profiles of a batch. Always in this order: two batches over the same people cannot deadlock.
SELECT profile_id, email, user_id
FROM profiles
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid [])
ORDER BY profile_id
FOR UPDATE;

-- name: release_identifiers
-- Takes away identifiers that their profiles do not have any more.
DELETE FROM identifiers
USING unnest(:kinds::smallint [], :values::text [], :profile_ids::uuid []) AS old (kind, value, profile_id)
WHERE
    identifiers.project_id = :project_id
    AND identifiers.kind = old.kind
    AND identifiers.value = old.value
    AND identifiers.profile_id = old.profile_id;

-- name: claim_identifiers
-- Gives identifiers to profiles; the number of rows tells whether all were free. This is where uniqueness is decided: a
-- second transaction that claims the same waits here until the first has ended. In order, so that two batches that claim
-- the same identifiers wait for each other and never deadlock.
INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT :project_id, new.kind, new.value, new.profile_id, new.exclusive
FROM
    unnest(:kinds::smallint [], :values::text [], :profile_ids::uuid [], :exclusive::boolean [])
        AS new (kind, value, profile_id, exclusive)
ORDER BY new.kind, new.value, new.profile_id
ON CONFLICT DO NOTHING;

-- name: insert_profiles
INSERT INTO profiles (project_id, profile_id, email, user_id, data_fields, signup_source)
SELECT :project_id, new.profile_id, new.email, new.user_id, new.data_fields, new.signup_source
FROM
    unnest(:profile_ids::uuid [], :emails::text [], :user_ids::text [], :data_fields::jsonb [], :sources::smallint [])
        AS new (profile_id, email, user_id, data_fields, signup_source);

-- name: set_identifiers
-- Writes the copies that profiles keep of their identifiers.
UPDATE profiles
SET email = new.email, user_id = new.user_id, profile_update_time = now(), update_time = now()
FROM unnest(:profile_ids::uuid [], :emails::text [], :user_ids::text []) AS new (profile_id, email, user_id)
WHERE profiles.project_id = :project_id AND profiles.profile_id = new.profile_id;

-- name: set_data_fields
UPDATE profiles
SET data_fields = :data_fields::jsonb, profile_update_time = now(), update_time = now()
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: claim_link
-- Links an anonymous_id to a person and opens its entry in the ledger; no row if it is linked already. A second Identify
-- of the same id waits here until the first has ended, so the first commit wins.
WITH link AS (
    INSERT INTO identifiers (
        project_id, kind, value, profile_id, exclusive, merge_id, link_time, grace_end_time
    )
    VALUES (:project_id, 3, :anonymous_id, :profile_id, true, uuidv7(), now(), now() + :grace::interval)
    ON CONFLICT DO NOTHING
    RETURNING profile_id, merge_id, link_time, grace_end_time
),

ledger AS (
    INSERT INTO merges (
        project_id, merge_id, kind, target_profile_id, anonymous_id, subject_id, create_time, window_end_time
    )
    SELECT
        :project_id,
        link.merge_id,
        'ASSOCIATION',
        link.profile_id,
        :anonymous_id,
        :subject_id,
        link.link_time,
        link.grace_end_time
    FROM link
)

SELECT profile_id, merge_id, link_time, grace_end_time
FROM link;

-- name: find_link
-- Whose an anonymous_id is.
SELECT profile_id, merge_id, link_time, grace_end_time
FROM identifiers
WHERE project_id = :project_id AND kind = 3 AND value = :anonymous_id;
