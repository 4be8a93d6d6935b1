-- Switches of a project that came after the first version. All are off for the projects that are there.
ALTER TABLE projects
ADD COLUMN triggers_enabled boolean NOT NULL DEFAULT false,
ADD COLUMN server_side_activation boolean NOT NULL DEFAULT false,
ADD COLUMN require_consent boolean NOT NULL DEFAULT false;
