"""The log of what happened to people, visitors and in a project."""
