"""`livefactor recommend`: the command, and lists for all users of a file."""
