"""`livefactor tune`: the command, and the study that it runs."""
