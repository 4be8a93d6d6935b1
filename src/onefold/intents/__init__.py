"""Work that a commit leaves to the workers: rows in PostgreSQL, leases on them, and the bell that says one is there."""
