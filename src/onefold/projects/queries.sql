-- name: hold_project_id
-- In a statement of its own, so that the next one sees what the one before had committed.
SELECT pg_advisory_xact_lock(hashtextextended('onefold project ' || :project_id, 0));

-- name: insert_project
-- No row if the project_id is taken, or an import under it is unfinished.
INSERT INTO projects (
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    creator_project_id
)
SELECT
    :project_id,
    :identifier_type,
    :region,
    :event_merging_enabled,
    :triggers_enabled,
    :server_side_activation,
    :require_consent,
    :max_calls_per_second,
    :max_events_per_second,
    :creator_project_id
WHERE NOT EXISTS (SELECT FROM imports WHERE project_id = :project_id)
ON CONFLICT DO NOTHING
RETURNING
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time;

-- name: get_project
SELECT
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time
FROM projects
WHERE project_id = :project_id;

-- name: list_projects
-- A page of a project itself and those made with its keys.
SELECT
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time
FROM projects
WHERE (project_id = :project_id OR creator_project_id = :project_id) AND project_id > :after_project_id
ORDER BY project_id
LIMIT :count::integer;

-- name: list_all_projects
-- For an operator: every project of the database.
SELECT
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time
FROM projects
ORDER BY project_id;

-- name: list_api_keys
-- A page of a project's keys, the ended ones included.
SELECT key_id, scopes, display_name, create_time, expire_time, revoke_time
FROM api_keys
WHERE project_id = :project_id AND key_id > :after_key_id
ORDER BY key_id
LIMIT :count::integer;

-- name: forget_secret
-- The secret that all servers of this database share, unless they are given one.
SELECT secret FROM server_secrets WHERE name = 'forgotten';

-- name: lock_project
-- Two updates at once must not decide by the same old row.
SELECT
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time
FROM projects
WHERE project_id = :project_id
FOR UPDATE;

-- name: update_project
UPDATE projects
SET
    region = :region,
    event_merging_enabled = :event_merging_enabled,
    triggers_enabled = :triggers_enabled,
    server_side_activation = :server_side_activation,
    require_consent = :require_consent,
    max_calls_per_second = :max_calls_per_second,
    max_events_per_second = :max_events_per_second,
    update_time = now()
WHERE project_id = :project_id
RETURNING
    project_id,
    identifier_type,
    region,
    event_merging_enabled,
    triggers_enabled,
    server_side_activation,
    require_consent,
    max_calls_per_second,
    max_events_per_second,
    create_time,
    update_time;

-- name: insert_api_key
-- A key registered again (a development key at every start) is good again.
INSERT INTO api_keys (project_id, key_id, secret_hash, scopes, display_name, expire_time)
VALUES (:project_id, :key_id, :secret_hash, :scopes, :display_name, :expire_time)
ON CONFLICT (project_id, key_id) DO UPDATE
SET
    secret_hash = excluded.secret_hash,
    scopes = excluded.scopes,
    expire_time = excluded.expire_time,
    revoke_time = NULL
RETURNING key_id, scopes, display_name, create_time, expire_time, revoke_time;

-- name: revoke_api_key
-- Revoked once: the first time stays.
UPDATE api_keys
SET revoke_time = coalesce(revoke_time, now())
WHERE project_id = :project_id AND key_id = :key_id
RETURNING key_id, scopes, display_name, create_time, expire_time, revoke_time;

-- name: find_api_key
-- What a key's id leads to, before the call's project is known.
SELECT
    api_keys.key_id,
    api_keys.secret_hash,
    api_keys.scopes,
    api_keys.expire_time,
    api_keys.revoke_time,
    projects.project_id,
    projects.identifier_type,
    projects.region,
    projects.event_merging_enabled,
    projects.triggers_enabled,
    projects.server_side_activation,
    projects.require_consent,
    projects.max_calls_per_second,
    projects.max_events_per_second,
    projects.create_time,
    projects.update_time,
    coalesce(projects.forget_name, projects.project_id) AS forget_name,
    now() AS now
FROM api_keys
INNER JOIN projects ON projects.project_id = api_keys.project_id
WHERE api_keys.key_id = :key_id;

-- name: is_ahead
-- Whether a moment lies in the future of the database's clock.
SELECT :moment::timestamptz > now() AS is_ahead;
