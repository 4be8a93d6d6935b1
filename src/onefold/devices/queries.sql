-- name: lock_token_shared
-- Registrations of a token exclude its disables and not each other. The number that the next statement takes is then
-- later than that of every disable that came first, and earlier than that of every one to come. A statement of its own,
-- so that what follows sees what the lock waited for.
SELECT pg_advisory_xact_lock_shared(:key::bigint);

-- name: lock_token
-- A disable for everybody excludes the token's registrations until it is committed. So does an exclusive registration,
-- which makes one: of two at one time the second then finds the first one's copy, and switches it off.
SELECT pg_advisory_xact_lock(:key::bigint);

-- name: find_copy
-- A profile's copy of a device as reads see it.
SELECT
    device.platform,
    device.application_name,
    device.data_fields::text AS data_fields,
    device.endpoint_enabled AND NOT EXISTS (
        SELECT FROM token_disables AS disable
        WHERE
            disable.project_id = :project_id
            AND disable.token = :token
            AND disable.finish_time IS NULL
            AND disable.operation_number > device.operation_number
    ) AS endpoint_enabled
FROM devices AS device
WHERE device.project_id = :project_id AND device.profile_id = :profile_id AND device.token = :token;

-- name: count_devices
-- How many devices a profile holds: browser tokens (platform 4) and others are counted apart.
SELECT count(*)
FROM devices
WHERE project_id = :project_id AND profile_id = :profile_id AND (platform = 4) = :browser::boolean;

-- name: put_copy
-- Writes a registered copy under the next number, enabled.
INSERT INTO devices (
    project_id,
    profile_id,
    token,
    platform,
    application_name,
    data_fields,
    endpoint_enabled,
    operation_number,
    is_own,
    create_time,
    update_time
)
VALUES (
    :project_id,
    :profile_id,
    :token,
    :platform,
    :application_name,
    :data_fields::json,
    true,
    nextval('operation_numbers'),
    true,
    now(),
    now()
)
ON CONFLICT (project_id, profile_id, token) DO UPDATE
SET
    platform = excluded.platform,
    application_name = excluded.application_name,
    data_fields = excluded.data_fields,
    endpoint_enabled = true,
    operation_number = excluded.operation_number,
    is_own = true,
    update_time = excluded.update_time;

-- name: renew_copy
-- A registration that changes nothing still is the newest operation.
UPDATE devices
SET operation_number = nextval('operation_numbers'), is_own = true
WHERE project_id = :project_id AND profile_id = :profile_id AND token = :token;

-- name: disable_copy
-- Switches one profile's copy off, and those of the profiles that were merged into it, so that no undo brings one back on.
-- They get one number, which tells a merge and its undo that none of them is newer. The rows are locked in the order in
-- which a disable for everybody takes them.
WITH copies AS (
    SELECT devices.profile_id
    FROM devices
    WHERE
        devices.project_id = :project_id
        AND devices.token = :token
        AND devices.profile_id = ANY(
            ARRAY(
                SELECT :profile_id::uuid
                UNION ALL
                SELECT unnest(merges.origin_ids)
                FROM merges
                WHERE
                    merges.project_id = :project_id
                    AND merges.target_profile_id = :profile_id
                    AND merges.kind = 'PROFILE'
                    AND merges.undo_time IS NULL
            )
        )
    ORDER BY devices.profile_id
    FOR UPDATE
)

UPDATE devices
SET
    endpoint_enabled = false,
    operation_number = (SELECT nextval('operation_numbers')),
    -- One that an open disable of the token reaches has been off since that.
    update_time = CASE
        WHEN devices.endpoint_enabled
            THEN coalesce(
                (
                    SELECT min(disable.create_time)
                    FROM token_disables AS disable
                    WHERE
                        disable.project_id = :project_id
                        AND disable.token = :token
                        AND disable.finish_time IS NULL
                        AND disable.operation_number > devices.operation_number
                ),
                now()
            )
        ELSE devices.update_time
    END
FROM copies
WHERE devices.project_id = :project_id AND devices.profile_id = copies.profile_id AND devices.token = :token;

-- name: token_is_held
-- Whether a living profile holds a token: the copies of one that was merged away are kept for an undo only.
SELECT
    EXISTS (
        SELECT
        FROM devices
        INNER JOIN profiles ON profiles.project_id = :project_id AND profiles.profile_id = devices.profile_id
        WHERE devices.project_id = :project_id AND devices.token = :token
    );

-- name: others_hold_token
-- Whether an exclusive registration has anything to switch off: a copy of another living profile, on or off, or one that is
-- still on of a profile that was merged away, because an undo would bring that back as it is. The LIMIT keeps the planner
-- to looking one profile up after the other until there is one; it might read all of them.
SELECT
    EXISTS (
        SELECT
        FROM devices
        CROSS JOIN LATERAL (
            SELECT FROM profiles
            WHERE profiles.project_id = :project_id AND profiles.profile_id = devices.profile_id
            LIMIT 1
        ) AS living
        WHERE devices.project_id = :project_id AND devices.token = :token AND devices.profile_id <> :profile_id
    )
    OR EXISTS (
        SELECT FROM devices
        WHERE project_id = :project_id AND token = :token AND profile_id <> :profile_id AND endpoint_enabled
    );

-- name: add_disable
-- The disable takes effect with this row: reads apply it to every copy with a lower number.
INSERT INTO token_disables (project_id, disable_id, token, operation_number, create_time)
VALUES (:project_id, uuidv7(), :token, nextval('operation_numbers'), now())
RETURNING disable_id, token, disabled_count, create_time, finish_time;

-- name: find_disable
SELECT disable_id, token, disabled_count, create_time, finish_time
FROM token_disables
WHERE project_id = :project_id AND disable_id = :disable_id;

-- name: list_devices
-- A page of a profile's devices by token, with the open disables of their tokens applied.
SELECT
    device.profile_id,
    device.token,
    device.platform,
    device.application_name,
    device.data_fields::text AS data_fields,
    device.endpoint_enabled AND disable.create_time IS NULL AS endpoint_enabled,
    device.create_time,
    CASE WHEN device.endpoint_enabled THEN coalesce(disable.create_time, device.update_time) ELSE device.update_time END
        AS update_time
FROM devices AS device
LEFT JOIN LATERAL (
    SELECT min(token_disables.create_time) AS create_time
    FROM token_disables
    WHERE
        token_disables.project_id = :project_id
        AND token_disables.token = device.token
        AND token_disables.finish_time IS NULL
        AND token_disables.operation_number > device.operation_number
) AS disable ON true
WHERE device.project_id = :project_id AND device.profile_id = :profile_id AND device.token > :after_token
ORDER BY device.token
LIMIT :count::integer;

-- name: list_token_holders
-- A page of a token's holders, oldest profile first, with the token's open disables applied.
SELECT
    device.profile_id,
    device.token,
    device.platform,
    device.application_name,
    device.data_fields::text AS data_fields,
    device.endpoint_enabled AND disable.create_time IS NULL AS endpoint_enabled,
    device.create_time,
    CASE WHEN device.endpoint_enabled THEN coalesce(disable.create_time, device.update_time) ELSE device.update_time END
        AS update_time,
    profile.email,
    profile.user_id
FROM devices AS device
INNER JOIN profiles AS profile ON profile.project_id = :project_id AND profile.profile_id = device.profile_id
LEFT JOIN LATERAL (
    SELECT min(token_disables.create_time) AS create_time
    FROM token_disables
    WHERE
        token_disables.project_id = :project_id
        AND token_disables.token = :token
        AND token_disables.finish_time IS NULL
        AND token_disables.operation_number > device.operation_number
) AS disable ON true
WHERE device.project_id = :project_id AND device.token = :token AND device.profile_id > :after_profile_id
ORDER BY device.profile_id
LIMIT :count::integer;
