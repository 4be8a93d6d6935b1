"""When a visitor becomes an unknown profile."""
