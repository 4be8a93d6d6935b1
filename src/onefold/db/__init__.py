"""PostgreSQL: the pool, the statements in .sql files, the migrations."""
