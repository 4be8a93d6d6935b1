"""What a process tells of itself: metrics, probes, log lines of calls, traces. Never anybody's data."""
