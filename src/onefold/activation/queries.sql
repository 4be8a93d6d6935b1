-- name: insert_criterion
INSERT INTO criteria (project_id, criterion_id, name, root)
VALUES (:project_id, uuidv7(), :name, :root::json)
RETURNING criterion_id, name, version, root::text AS root, create_time, update_time;

-- name: count_criteria
SELECT count(*)
FROM criteria
WHERE project_id = :project_id;

-- name: list_criteria
-- In the order in which they are evaluated.
SELECT criterion_id, name, version, root::text AS root, create_time, update_time
FROM criteria
WHERE project_id = :project_id
ORDER BY criterion_id;

-- name: lock_criterion
-- Held until the end of the transaction: two changes of one criterion come one after the other.
SELECT criterion_id, name, version, root::text AS root, create_time, update_time
FROM criteria
WHERE project_id = :project_id AND criterion_id = :criterion_id
FOR NO KEY UPDATE;

-- name: update_criterion
UPDATE criteria
SET name = :name, root = :root::json, version = version + 1, update_time = now()
WHERE project_id = :project_id AND criterion_id = :criterion_id
RETURNING criterion_id, name, version, root::text AS root, create_time, update_time;

-- name: delete_criterion
-- Waits for whoever is making a profile for the criterion; whoever comes after finds it gone.
DELETE FROM criteria
WHERE project_id = :project_id AND criterion_id = :criterion_id;

-- name: hold_criteria
-- Those that are still there, kept from being deleted until the end of the transaction. In order: no deadlock.
SELECT criterion_id
FROM criteria
WHERE project_id = :project_id AND criterion_id = ANY(:criterion_ids::uuid [])
ORDER BY criterion_id
FOR KEY SHARE;
