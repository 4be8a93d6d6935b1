"""Where people can be reached."""
