-- Projects that are brought in from a file.

-- An import that is under way or was interrupted: which file, and how far it is. While the row is there the project
-- itself is not, so no key opens it and no call reaches what has been brought in so far.
CREATE TABLE imports (
    project_id text COLLATE "C" NOT NULL,
    file_hash bytea NOT NULL,
    section text NOT NULL DEFAULT '',
    byte_offset bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id)
);

-- Under which name the hashes of forgotten identifiers were made; null for the project's own id. A project that is
-- imported under another id keeps the hashes, and so the name.
ALTER TABLE projects
ADD COLUMN forget_name text COLLATE "C";
