"""Taking a project out of a database as a file, and bringing such a file in: there again, or elsewhere."""
