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

-- name: take_notes
-- The oldest notes, of about so many events, for good: whoever else takes some at the same time takes others.
WITH counted AS (
    SELECT
        oldest.note_id,
        sum(oldest.event_count) OVER (ORDER BY oldest.note_id) - oldest.event_count AS count_before
    FROM (
        SELECT note_id, cardinality(anonymous_ids) AS event_count
        FROM activation_notes
        WHERE project_id = :project_id
        ORDER BY note_id
        LIMIT 100
    ) AS oldest
),

held AS (
    SELECT activation_notes.note_id
    FROM activation_notes
    WHERE
        activation_notes.project_id = :project_id
        AND activation_notes.note_id = ANY(
            ARRAY(SELECT counted.note_id FROM counted WHERE counted.count_before < :count::integer)
        )
    FOR UPDATE SKIP LOCKED
)

DELETE FROM activation_notes
USING held
WHERE activation_notes.project_id = :project_id AND activation_notes.note_id = held.note_id
RETURNING
    activation_notes.note_id,
    activation_notes.anonymous_ids,
    activation_notes.event_times,
    activation_notes.event_ids,
    activation_notes.create_time,
    activation_notes.transaction_id::text AS transaction_id;

-- name: hold_intent
-- Keeps everybody who wants to leave a note from relying on the intent. No row while somebody does, or if the lease is lost.
SELECT intent_id
FROM intents
WHERE project_id = :project_id AND intent_id = :intent_id AND lease_token = :lease_token
FOR UPDATE SKIP LOCKED;

-- name: are_notes_left
SELECT EXISTS (SELECT FROM activation_notes WHERE project_id = :project_id);

-- name: moment_after
SELECT clock_timestamp() + :pause::interval;

-- name: linked_ids
-- Those of anonymous ids that are somebody's. Each is used up, also for what arrives under it later.
SELECT value AS anonymous_id
FROM identifiers
WHERE project_id = :project_id AND kind = 3 AND value = ANY(:anonymous_ids::text []);

-- name: read_noted_events
-- Events that left a note and are younger than 30 days, without what is being erased because a person who had the id was
-- forgotten.
SELECT
    noted.position,
    event.event_time,
    event.event_id,
    event.kind,
    event.name,
    event.data::text AS data
FROM
    unnest(:subject_ids::uuid [], :event_times::timestamptz [], :event_ids::text [])
    WITH ORDINALITY AS noted (subject_id, event_time, event_id, position)
INNER JOIN anonymous_events AS event
    ON
        event.project_id = :project_id
        AND event.subject_id = noted.subject_id
        AND event.event_time = noted.event_time
        AND event.event_id = noted.event_id
WHERE
    event.event_time > now() - :lifetime::interval
    AND event.receive_time > coalesce(
        (
            SELECT max(moves.window_end_time)
            FROM moves
            WHERE moves.project_id = :project_id AND moves.container_subject_id = noted.subject_id
        ),
        '-infinity'
    )
ORDER BY noted.position;

-- name: hold_visitors
-- How far visitors are, held until the end of the transaction, and in order: two workers who look at the same visitors do
-- so one after the other. is_current: counted under these criteria, nothing that was counted has had its 30 days since, and every server has known
-- since then that visitors are to be noted.
INSERT INTO activation_visitors (project_id, subject_id)
SELECT :project_id, visitor.subject_id
FROM unnest(:subject_ids::uuid []) AS visitor (subject_id)
ORDER BY visitor.subject_id
ON CONFLICT (project_id, subject_id) DO UPDATE
SET active_day = date_trunc('day', now())
RETURNING
    subject_id,
    counts::text AS counts,
    oldest_event_time,
    counted_time,
    counted_snapshot,
    criteria_key = :criteria_key
    AND (oldest_event_time > now() - :lifetime::interval) IS NOT FALSE
    AND counted_time > :settings_settle_time
    AND NOT EXISTS (
        -- What is being given back to the visitor is not counted yet.
        SELECT FROM moves
        WHERE moves.project_id = :project_id AND moves.owner_subject_id = activation_visitors.subject_id
    ) AS is_current;

-- name: write_visitors
UPDATE activation_visitors
SET
    criteria_key = :criteria_key,
    counts = new.counts,
    oldest_event_time = new.oldest_event_time,
    counted_time = new.counted_time,
    counted_snapshot = new.counted_snapshot
FROM
    unnest(
        :subject_ids::uuid [],
        :counts::json [],
        :oldest_event_times::timestamptz [],
        :counted_times::timestamptz [],
        :counted_snapshots::text []
    ) AS new (subject_id, counts, oldest_event_time, counted_time, counted_snapshot)
WHERE activation_visitors.project_id = :project_id AND activation_visitors.subject_id = new.subject_id;

-- name: read_visitors
-- Everything that counts of visitors, of each the newest events of so many, oldest first; and what this statement sees, told
-- by itself: at least one row a visitor. What is being given back to a visitor is left out; hold_visitors has it counted
-- later.
SELECT
    visitor.subject_id,
    clock_timestamp() AS counted_time,
    pg_current_snapshot()::text AS counted_snapshot,
    event.event_time,
    event.event_id,
    event.kind,
    event.name,
    event.data::text AS data
FROM unnest(:subject_ids::uuid []) AS visitor (subject_id)
LEFT JOIN LATERAL (
    SELECT
        anonymous_events.event_time,
        anonymous_events.event_id,
        anonymous_events.kind,
        anonymous_events.name,
        anonymous_events.data
    FROM anonymous_events
    WHERE
        anonymous_events.project_id = :project_id
        AND anonymous_events.subject_id = visitor.subject_id
        AND anonymous_events.event_time > now() - :lifetime::interval
        AND anonymous_events.kind = ANY(:kinds::smallint [])
        AND anonymous_events.receive_time > coalesce(
            (
                SELECT max(moves.window_end_time)
                FROM moves
                WHERE moves.project_id = :project_id AND moves.container_subject_id = visitor.subject_id
            ),
            '-infinity'
        )
    ORDER BY anonymous_events.event_time DESC, anonymous_events.event_id DESC
    LIMIT :count::integer
) AS event ON true
ORDER BY visitor.subject_id, event.event_time, event.event_id;

-- name: drop_visitors
-- Those who have a profile now, or whose data could not be evaluated.
DELETE FROM activation_visitors
WHERE project_id = :project_id AND subject_id = ANY(:subject_ids::uuid []);

-- name: add_review
INSERT INTO activation_reviews (project_id, review_id)
VALUES (:project_id, uuidv7())
RETURNING review_id;

-- name: lock_review
SELECT after_subject_id
FROM activation_reviews
WHERE project_id = :project_id AND review_id = :review_id
FOR UPDATE;

-- name: next_visitors
-- The next visitors who have events, by their keys. One step into the index for each visitor, however many events there are.
WITH RECURSIVE visitor AS (
    (
        SELECT anonymous_events.subject_id, anonymous_events.anonymous_id, 1 AS number
        FROM anonymous_events
        WHERE anonymous_events.project_id = :project_id AND anonymous_events.subject_id > :after_subject_id
        ORDER BY anonymous_events.subject_id
        LIMIT 1
    )
    UNION ALL
    SELECT next_visitor.subject_id, next_visitor.anonymous_id, visitor.number + 1
    FROM visitor
    CROSS JOIN LATERAL (
        SELECT anonymous_events.subject_id, anonymous_events.anonymous_id
        FROM anonymous_events
        WHERE anonymous_events.project_id = :project_id AND anonymous_events.subject_id > visitor.subject_id
        ORDER BY anonymous_events.subject_id
        LIMIT 1
    ) AS next_visitor
    WHERE visitor.number < :count::integer
)

SELECT subject_id, anonymous_id
FROM visitor
ORDER BY number;

-- name: move_review
UPDATE activation_reviews
SET after_subject_id = :after_subject_id
WHERE project_id = :project_id AND review_id = :review_id;

-- name: end_review
DELETE FROM activation_reviews
WHERE project_id = :project_id AND review_id = :review_id;
