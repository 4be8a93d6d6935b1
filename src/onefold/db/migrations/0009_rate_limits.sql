-- How many calls and events a second one process of a server takes of a project. 0 is no limit, which the projects that
-- are there begin with.
ALTER TABLE projects
ADD COLUMN max_calls_per_second integer NOT NULL DEFAULT 0 CHECK (max_calls_per_second >= 0),
ADD COLUMN max_events_per_second integer NOT NULL DEFAULT 0 CHECK (max_events_per_second >= 0);
