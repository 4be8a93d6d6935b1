-- name: table_columns
-- What a table has by now, in its order.
SELECT attname AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum;

-- name: work_left
-- What workers have still to do for a project; until then rows lie elsewhere than they belong.
SELECT
    (SELECT count(*) FROM intents WHERE project_id = :project_id)
    + (SELECT count(*) FROM moves WHERE project_id = :project_id)
    + (SELECT count(*) FROM activation_notes WHERE project_id = :project_id) AS work_left;

-- name: linked_visitors
-- Whom an id stands for that is made of an anonymous_id: of those that were linked, and of those who allowed something.
SELECT DISTINCT ON (subject_id) subject_id, anonymous_id
FROM (
    SELECT identifiers.origin_id AS subject_id, identifiers.value AS anonymous_id
    FROM identifiers
    WHERE identifiers.project_id = :project_id AND identifiers.kind = 3
    UNION ALL
    SELECT merges.origin_ids[1], merges.anonymous_id
    FROM merges
    WHERE merges.project_id = :project_id AND merges.kind = 'ASSOCIATION' AND merges.anonymous_id IS NOT NULL
    UNION ALL
    SELECT visitor.subject_id, visitor.anonymous_id
    FROM consents
    CROSS JOIN LATERAL (
        SELECT each.subject_id, each.anonymous_id
        FROM anonymous_events AS each
        WHERE each.project_id = :project_id AND each.subject_id = consents.holder_id
        LIMIT 1
    ) AS visitor
    WHERE consents.project_id = :project_id AND NOT consents.is_profiles
) AS named;

-- name: forget_name
-- Under which name the project's hashes were made, and whether there are any.
SELECT
    coalesce(projects.forget_name, projects.project_id) AS forget_name,
    EXISTS (SELECT FROM forgotten WHERE forgotten.project_id = :project_id) AS has_hashes
FROM projects
WHERE projects.project_id = :project_id;

-- name: hold_import
-- Two imports of one project would bring in everything twice. Of the session, so that it ends with the process.
SELECT pg_try_advisory_lock(hashtextextended('onefold import ' || :project_id, 0));

-- name: find_import
SELECT file_hash, section, byte_offset
FROM imports
WHERE project_id = :project_id;

-- name: begin_import
INSERT INTO imports (project_id, file_hash)
VALUES (:project_id, :file_hash);

-- name: note_import
-- In the transaction of the rows themselves: both are there, or neither.
UPDATE imports
SET section = :section, byte_offset = :byte_offset
WHERE project_id = :project_id;

-- name: end_import
DELETE FROM imports
WHERE project_id = :project_id;

-- name: add_visitors
-- So that a review finds who was there before; they are counted when they are looked at.
INSERT INTO activation_visitors (project_id, subject_id)
SELECT DISTINCT :project_id, subject_id
FROM anonymous_events
WHERE project_id = :project_id
ON CONFLICT DO NOTHING;

-- name: expire_cursors
-- No trigger came along: a cursor from before would skip what is told from now on.
INSERT INTO trigger_purges (project_id, purged_number)
SELECT :project_id, last_value FROM trigger_numbers;

-- name: largest_operation
-- The largest number that came along.
SELECT
    greatest(
        (SELECT max(operation_number) FROM devices WHERE project_id = :project_id),
        (SELECT max(operation_number) FROM token_disables WHERE project_id = :project_id)
    ) AS largest_operation;
