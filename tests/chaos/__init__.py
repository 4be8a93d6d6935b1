"""Layer 3 of the checker: real processes, seeded clients and faults, and an audit of what was acknowledged."""
