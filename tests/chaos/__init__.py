"""Layer 3 of the checker: real processes, seeded clients and faults, and an audit by the clients' log and the database."""
