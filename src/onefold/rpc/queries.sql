-- name: find_answer
-- The answer stored for a request_id, while it is younger than 24 hours.
SELECT body_hash, answer
FROM requests
WHERE project_id = :project_id AND request_id = :request_id AND create_time > now() - :lifetime::interval;

-- name: store_answer
-- Stores the answer in the transaction that had the effect. A row older than 24 hours is taken over; a younger one means
-- that the same request committed meanwhile: no row comes back, and the caller starts again to find its answer.
INSERT INTO requests (project_id, request_id, body_hash, answer, profile_ids, create_time)
VALUES (:project_id, :request_id, :body_hash, :answer, :profile_ids::uuid [], now())
ON CONFLICT (project_id, request_id) DO UPDATE
SET
    body_hash = excluded.body_hash,
    answer = excluded.answer,
    profile_ids = excluded.profile_ids,
    create_time = excluded.create_time
WHERE requests.create_time <= now() - :lifetime::interval
RETURNING 1;
