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

-- name: record_consent
-- What was decided last, by the time of the decision, stands, in whatever order the decisions arrive. A time ahead of the
-- database's clock is this moment.
INSERT INTO consents (project_id, holder_id, consent_time, withdraw_time, is_known, device, is_profiles)
SELECT
    :project_id,
    :holder_id,
    CASE WHEN NOT :is_withdrawn::boolean THEN decision.decision_time END,
    CASE WHEN :is_withdrawn::boolean THEN decision.decision_time END,
    :is_known,
    :device::json,
    :is_profiles
FROM (SELECT least(coalesce(:decision_time::timestamptz, now()), now()) AS decision_time) AS decision
ON CONFLICT (project_id, holder_id) DO UPDATE
SET
    consent_time = greatest(consents.consent_time, excluded.consent_time),
    withdraw_time = greatest(consents.withdraw_time, excluded.withdraw_time),
    -- What was told with the consent that stands, or with a withdrawal as long as none was given.
    is_known = CASE
        WHEN coalesce(excluded.consent_time, '-infinity') >= coalesce(consents.consent_time, '-infinity')
            THEN excluded.is_known
        ELSE consents.is_known
    END,
    device = CASE
        WHEN coalesce(excluded.consent_time, '-infinity') >= coalesce(consents.consent_time, '-infinity')
            THEN excluded.device
        ELSE consents.device
    END,
    record_time = now()
RETURNING consent_time, withdraw_time, is_known, device::text AS device, record_time;

-- name: hold_consents
-- Those who consented and did not take it back, held until the end of the transaction: whoever takes it back now waits. In
-- order, so that nobody deadlocks.
SELECT holder_id
FROM consents
WHERE
    project_id = :project_id
    AND holder_id = ANY(:holder_ids::uuid [])
    AND consent_time > coalesce(withdraw_time, '-infinity')
ORDER BY holder_id
FOR SHARE;

-- name: give_consent_to_profile
-- The consent of a visitor whose unknown profile has just been made.
UPDATE consents
SET holder_id = :profile_id, is_profiles = true
WHERE project_id = :project_id AND holder_id = :holder_id;

-- name: this_moment
SELECT now();
