-- name: find_holders
-- Who holds each identifier of a batch, and the moment: one row per identifier that somebody holds or whose person was
-- forgotten, and a row without any if there is none. Of several holders the oldest, which is the one with the lowest
-- profile_id, and one that an identifier was left to by a merge only if nobody has it himself. The database's clock comes
-- along because whoever asks is about to decide by it, and so does an id of this moment, from which on the people who are
-- about to be made are numbered: by that clock too, so that "the oldest holder" does not depend on a server's, and later
-- than everybody's who is found here. holder_count is counted only when asked for.
SELECT
    clock.now,
    clock.first_new_id,
    found.kind,
    found.value,
    found.profile_id,
    found.merge_id,
    found.link_time,
    found.grace_end_time,
    found.is_redirect,
    found.is_forgotten,
    found.email,
    found.user_id,
    found.holder_count
FROM (SELECT now() AS now, uuidv7() AS first_new_id) AS clock
LEFT JOIN (
    SELECT
        wanted.kind,
        wanted.value,
        holder.profile_id,
        holder.merge_id,
        holder.link_time,
        holder.grace_end_time,
        coalesce(holder.is_redirect, false) AS is_redirect,
        forgotten.hash IS NOT NULL AS is_forgotten,
        profile.email,
        profile.user_id,
        CASE
            WHEN :count_holders::boolean
                THEN (
                    SELECT count(*)
                    FROM identifiers AS other
                    WHERE
                        other.project_id = :project_id
                        AND other.kind = wanted.kind
                        AND other.value = wanted.value
                        AND other.redirect_end_time IS NULL
                )
        END AS holder_count
    FROM unnest(:kinds::smallint [], :values::text [], :hashes::bytea []) AS wanted (kind, value, hash)
    LEFT JOIN LATERAL (
        SELECT
            identifiers.profile_id,
            identifiers.merge_id,
            identifiers.link_time,
            identifiers.grace_end_time,
            identifiers.redirect_end_time IS NOT NULL AS is_redirect
        FROM identifiers
        WHERE
            identifiers.project_id = :project_id
            AND identifiers.kind = wanted.kind
            AND identifiers.value = wanted.value
            AND (identifiers.redirect_end_time IS NULL OR identifiers.redirect_end_time > now())
        ORDER BY is_redirect, identifiers.profile_id
        LIMIT 1
    ) AS holder ON true
    LEFT JOIN forgotten ON forgotten.project_id = :project_id AND forgotten.hash = wanted.hash
    LEFT JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = holder.profile_id
    WHERE holder.profile_id IS NOT NULL OR forgotten.hash IS NOT NULL
) AS found ON true;

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

-- name: get_profiles
-- Everything about people, by their ids.
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
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid []);

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
        WHEN wanted.count_holders
            THEN (
                SELECT count(*)
                FROM identifiers AS other
                WHERE
                    other.project_id = :project_id
                    AND other.kind = wanted.kind
                    AND other.value = wanted.value
                    AND other.redirect_end_time IS NULL
            )
    END AS holder_count
FROM
    unnest(:kinds::smallint [], :values::text [], :count_holders::boolean []) AS wanted (kind, value, count_holders)
CROSS JOIN LATERAL (
    SELECT identifiers.profile_id
    FROM identifiers
    WHERE
        identifiers.project_id = :project_id
        AND identifiers.kind = wanted.kind
        AND identifiers.value = wanted.value
        AND (identifiers.redirect_end_time IS NULL OR identifiers.redirect_end_time > now())
    ORDER BY identifiers.redirect_end_time IS NOT NULL, identifiers.profile_id
    LIMIT 1
) AS holder
INNER JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = holder.profile_id;

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

-- name: claim_for_new_people
-- The same for profiles that nobody knows yet: they cannot have an identifier already, so only those that are one
-- profile's only can be taken. Looking for conflicts in one index instead of all saves a fifth.
INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT :project_id, new.kind, new.value, new.profile_id, new.exclusive
FROM
    unnest(:kinds::smallint [], :values::text [], :profile_ids::uuid [], :exclusive::boolean [])
        AS new (kind, value, profile_id, exclusive)
ORDER BY new.kind, new.value, new.profile_id
ON CONFLICT (project_id, kind, value) WHERE exclusive DO NOTHING;

-- name: any_forgotten
SELECT EXISTS (SELECT FROM forgotten WHERE project_id = :project_id AND hash = ANY(:hashes::bytea []));

-- name: insert_profiles
-- Inserts all or, if one of their identifiers was forgotten, none. ForgetProfile claims what it blocks: after one's own
-- claim, whoever waited for it sees it here, and nobody comes in between. One that is made for a visitor (ACTIVATION) is an
-- unknown one.
INSERT INTO profiles (project_id, profile_id, email, user_id, data_fields, signup_source, is_unknown)
SELECT
    :project_id, new.profile_id, new.email, new.user_id, new.data_fields, new.signup_source, new.signup_source = 5
FROM
    unnest(:profile_ids::uuid [], :emails::text [], :user_ids::text [], :data_fields::json [], :sources::smallint [])
        AS new (profile_id, email, user_id, data_fields, signup_source)
WHERE NOT EXISTS (SELECT FROM forgotten WHERE project_id = :project_id AND hash = ANY(:hashes::bytea []));

-- name: set_identifiers
-- Writes the copies that profiles keep of their identifiers.
UPDATE profiles
SET email = new.email, user_id = new.user_id, profile_update_time = now(), update_time = now()
FROM unnest(:profile_ids::uuid [], :emails::text [], :user_ids::text []) AS new (profile_id, email, user_id)
WHERE profiles.project_id = :project_id AND profiles.profile_id = new.profile_id;

-- name: become_known
-- Unknown profiles that got a name of their own.
UPDATE profiles
SET is_unknown = false
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid []) AND is_unknown;

-- name: settle_links
-- It is known now who a visitor is. Links that followed the visitor until then are what any link is when it is made: they
-- bring in what is received during the grace, and nothing after that; what still moves because of them, too.
WITH capped AS (
    UPDATE moves
    SET window_end_time = now() + :grace::interval
    WHERE
        moves.project_id = :project_id
        AND moves.owner_profile_id = :profile_id
        AND moves.container_subject_id IS NOT NULL
        AND moves.window_end_time > now() + :grace::interval
)

UPDATE identifiers
SET link_time = now(), grace_end_time = now() + :grace::interval
WHERE project_id = :project_id AND profile_id = :profile_id AND kind = 3 AND grace_end_time > now() + :grace::interval;

-- name: lock_data_fields
-- The profiles of a batch, held until the end of the transaction, with what its updates build on.
SELECT profile_id, email, user_id, data_fields::text AS data_fields
FROM profiles
WHERE project_id = :project_id AND profile_id = ANY(:profile_ids::uuid [])
ORDER BY profile_id
FOR UPDATE;

-- name: set_many_data_fields
UPDATE profiles
SET data_fields = new.data_fields, profile_update_time = now(), update_time = now()
FROM unnest(:profile_ids::uuid [], :data_fields::json []) AS new (profile_id, data_fields)
WHERE profiles.project_id = :project_id AND profiles.profile_id = new.profile_id;

-- name: lookup_profiles
-- Every holder of an identifier after a certain one, oldest first.
SELECT
    profile.profile_id,
    profile.email,
    profile.user_id,
    profile.data_fields::text AS data_fields,
    profile.is_unknown,
    profile.signup_source,
    profile.signup_time,
    profile.profile_update_time,
    profile.create_time,
    profile.update_time
FROM identifiers AS holder
INNER JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = holder.profile_id
WHERE
    holder.project_id = :project_id
    AND holder.kind = :kind
    AND holder.value = :value
    AND (holder.redirect_end_time IS NULL OR holder.redirect_end_time > now())
    AND holder.profile_id > :after_profile_id
ORDER BY holder.profile_id
LIMIT :count::integer;

-- name: set_data_fields
UPDATE profiles
SET data_fields = :data_fields::json, profile_update_time = now(), update_time = now()
WHERE project_id = :project_id AND profile_id = :profile_id;

-- name: release_redirects
-- Frees identifiers that a merge left: those whose time is over, and those left to the very profile that claims them.
DELETE FROM identifiers
USING unnest(:kinds::smallint [], :values::text [], :profile_ids::uuid []) AS wanted (kind, value, profile_id)
WHERE
    identifiers.project_id = :project_id
    AND identifiers.kind = wanted.kind
    AND identifiers.value = wanted.value
    AND identifiers.redirect_end_time IS NOT NULL
    AND (identifiers.redirect_end_time <= now() OR identifiers.profile_id = wanted.profile_id);

-- name: claim_link
-- Links an anonymous_id to a person and opens its entry in the ledger; no row if it is linked already. A second Identify
-- of the same id waits here until the first has ended, so the first commit wins. The subject's stored events are the
-- person's from here on, and so is what an undone association is still giving back to the subject.
WITH link AS (
    INSERT INTO identifiers (
        project_id, kind, value, profile_id, exclusive, origin_id, merge_id, link_time, grace_end_time
    )
    VALUES (:project_id, 3, :anonymous_id, :profile_id, true, :subject_id, uuidv7(), now(), now() + :grace::interval)
    ON CONFLICT DO NOTHING
    RETURNING profile_id, merge_id, link_time, grace_end_time
),

ledger AS (
    INSERT INTO merges (
        project_id, merge_id, kind, target_profile_id, anonymous_id, origin_ids, create_time, key_id
    )
    SELECT
        :project_id,
        link.merge_id,
        'ASSOCIATION',
        link.profile_id,
        :anonymous_id,
        ARRAY[:subject_id::uuid],
        link.link_time,
        :key_id
    FROM link
),

move AS (
    INSERT INTO moves (
        project_id,
        move_id,
        merge_id,
        counted_merge_ids,
        container_subject_id,
        owner_profile_id,
        window_start_time,
        window_end_time,
        alive_after,
        create_time
    )
    SELECT
        :project_id,
        link.merge_id,
        link.merge_id,
        ARRAY[link.merge_id],
        :subject_id,
        link.profile_id,
        -- What is being erased, because a person who had the id was forgotten, is not the new person's.
        coalesce(
            (
                SELECT max(erased.window_end_time)
                FROM moves AS erased
                WHERE
                    erased.project_id = :project_id
                    AND erased.container_subject_id = :subject_id
                    AND erased.owner_profile_id IS NULL
                    AND erased.owner_subject_id IS NULL
            ),
            '-infinity'
        ),
        link.grace_end_time,
        link.link_time - :lifetime::interval,
        link.link_time
    FROM link
),

given_back AS (
    UPDATE moves
    SET
        owner_profile_id = link.profile_id,
        owner_subject_id = NULL,
        alive_after = link.link_time - :lifetime::interval,
        merge_id = link.merge_id,
        counted_merge_ids = ARRAY[link.merge_id]
    FROM link
    WHERE moves.project_id = :project_id AND moves.owner_subject_id = :subject_id
)

SELECT profile_id, merge_id, link_time, grace_end_time
FROM link;

-- name: find_unknown_holder
-- The unknown profile that an anonymous_id stands for, while it is not known who it is.
SELECT profile.profile_id
FROM identifiers AS link
INNER JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = link.profile_id
WHERE link.project_id = :project_id AND link.kind = 3 AND link.value = :anonymous_id AND profile.is_unknown;

-- name: find_link
-- Whose an anonymous_id is.
SELECT profile_id, merge_id, link_time, grace_end_time
FROM identifiers
WHERE project_id = :project_id AND kind = 3 AND value = :anonymous_id;
