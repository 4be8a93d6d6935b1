-- name: add_intent
-- In the transaction of the effect that the work belongs to: both are committed, or neither.
INSERT INTO intents (project_id, intent_id, kind, trace_parent)
VALUES (:project_id, :intent_id, :kind, :trace_parent);

-- name: due_intents
-- What a worker should look at now: due, not held by anybody, not given up. The one statement that looks across projects.
SELECT project_id, intent_id, kind, attempt_count
FROM intents
WHERE
    due_time <= now()
    AND stuck_time IS NULL
    AND (lease_end_time IS NULL OR lease_end_time <= now())
    AND kind = ANY(:kinds::text [])
ORDER BY due_time
LIMIT :count::integer;

-- name: due_activations
-- The same for visitors to be looked at, which is asked several times a second: there is an index of these alone. In no
-- order, so that projects with much to do do not keep the others waiting.
SELECT project_id, intent_id, kind, attempt_count
FROM intents
WHERE
    kind = 'ACTIVATE'
    AND due_time <= now()
    AND stuck_time IS NULL
    AND (lease_end_time IS NULL OR lease_end_time <= now())
ORDER BY random()
LIMIT :count::integer;

-- name: take_lease
-- Makes this worker the only one that may write for the intent. Of two that try together, the second finds no row. The
-- attempt is counted now, so that an intent that kills its workers is given up too.
UPDATE intents
SET
    lease_token = :lease_token,
    lease_end_time = clock_timestamp() + :lease::interval,
    attempt_count = attempt_count + 1
WHERE
    project_id = :project_id
    AND intent_id = :intent_id
    AND kind = ANY(:kinds::text [])
    AND due_time <= clock_timestamp()
    AND stuck_time IS NULL
    AND (lease_end_time IS NULL OR lease_end_time <= clock_timestamp())
RETURNING kind, attempt_count, trace_parent;

-- name: renew_lease
-- First in every chunk: keeps the lease, and holds its row so that nobody can take it before the chunk has ended. No row
-- means that the lease was lost: the chunk must not write.
UPDATE intents
SET lease_end_time = clock_timestamp() + :lease::interval
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token
RETURNING 1;

-- name: note_progress
-- Rows were written: the attempts start anew. An attempt that only looks again at what is done is no progress.
UPDATE intents
SET attempt_count = 1
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token;

-- name: finish_intent
-- The work is done; the ledgers of the features keep what is worth keeping.
DELETE FROM intents
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token;

-- name: postpone_intent
-- Nothing more to do before a certain time: gives the lease back until then.
UPDATE intents
SET lease_token = NULL, lease_end_time = NULL, attempt_count = 0, due_time = :due_time
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token;

-- name: fail_intent
-- An attempt failed: gives the lease back, and says when to try again or that nobody should.
UPDATE intents
SET
    lease_token = NULL,
    lease_end_time = NULL,
    last_error = :error,
    due_time = clock_timestamp() + :delay::interval,
    stuck_time = CASE WHEN :give_up::boolean THEN clock_timestamp() END
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token;

-- name: release_lease
-- A worker that is asked to stop gives its lease back, and the next one goes on at once.
UPDATE intents
SET lease_token = NULL, lease_end_time = NULL, attempt_count = greatest(attempt_count - 1, 0)
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token;

-- name: find_intent
-- How the work behind a ledger entry is doing; no row when it is done.
SELECT kind, due_time, attempt_count, lease_end_time, stuck_time, last_error
FROM intents
WHERE project_id = :project_id AND intent_id = :intent_id;

-- name: list_intents
-- For an operator: what is left to do, the oldest first, of one project or of all.
SELECT
    project_id,
    intent_id,
    kind,
    create_time,
    due_time,
    attempt_count,
    stuck_time,
    last_error,
    CASE
        WHEN stuck_time IS NOT NULL THEN 'STUCK'
        WHEN lease_end_time > now() THEN 'RUNNING'
        WHEN due_time > now() THEN 'WAITING'
        ELSE 'DUE'
    END AS state
FROM intents
WHERE
    (:project_id::text IS NULL OR project_id = :project_id)
    AND (NOT :stuck_only::boolean OR stuck_time IS NOT NULL)
ORDER BY create_time, intent_id
LIMIT :count::integer;

-- name: backlog
-- For the metrics: what is left to do, by kind, in all projects; how old the oldest is, and for how long the longest due
-- has waited for a worker. What is stuck waits for an operator and counts for itself.
SELECT
    kind,
    count(*) FILTER (WHERE stuck_time IS NULL) AS open_count,
    count(*) FILTER (WHERE stuck_time IS NOT NULL) AS stuck_count,
    extract(EPOCH FROM now() - min(create_time) FILTER (WHERE stuck_time IS NULL))::double precision AS oldest_seconds,
    extract(
        EPOCH FROM now() - min(due_time) FILTER (
            WHERE stuck_time IS NULL AND due_time <= now() AND (lease_end_time IS NULL OR lease_end_time <= now())
        )
    )::double precision AS overdue_seconds
FROM intents
GROUP BY kind;

-- name: describe_intent
-- For an operator: one intent, and what it is for. A move's merge and how many events it has moved, or the token that is
-- disabled for all and of how many holders it is done.
SELECT
    intents.project_id,
    intents.intent_id,
    intents.kind,
    intents.create_time,
    intents.due_time,
    intents.attempt_count,
    intents.lease_end_time,
    intents.stuck_time,
    intents.last_error,
    moves.merge_id,
    merges.kind AS merge_kind,
    merges.moved_event_count,
    token_disables.disabled_count,
    CASE
        WHEN intents.stuck_time IS NOT NULL THEN 'STUCK'
        WHEN intents.lease_end_time > now() THEN 'RUNNING'
        WHEN intents.due_time > now() THEN 'WAITING'
        ELSE 'DUE'
    END AS state
FROM intents
LEFT JOIN moves ON moves.project_id = intents.project_id AND moves.move_id = intents.intent_id
LEFT JOIN merges ON merges.project_id = moves.project_id AND merges.merge_id = moves.merge_id
LEFT JOIN token_disables
    ON token_disables.project_id = intents.project_id AND token_disables.disable_id = intents.intent_id
WHERE intents.intent_id = :intent_id;

-- name: retry_intents
-- For an operator who has removed the cause: stuck intents begin anew, with all their attempts.
UPDATE intents
SET stuck_time = NULL, attempt_count = 0, due_time = now()
WHERE
    (:project_id::text IS NULL OR project_id = :project_id)
    AND (:intent_ids::uuid [] IS NULL OR intent_id = ANY(:intent_ids::uuid []))
    AND stuck_time IS NOT NULL;
