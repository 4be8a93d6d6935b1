-- Pages of a project's activity log show invites too. Partial as the other indexes of the log are: only a statement that
-- says the same condition may use it.
CREATE INDEX invite_events_by_time ON invite_events (project_id, event_time, event_id) WHERE event_time > '-infinity';

-- Of a token disabled for all its holders: the profile that an exclusive registration left it to.
ALTER TABLE activities
ADD COLUMN kept_by_profile_id uuid;
