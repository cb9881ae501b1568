"""What a restart takes: the replay of a log alone, and the start of a whole server."""
