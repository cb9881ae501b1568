"""`livefactor evaluate`: the command, and the comparison that it runs."""
