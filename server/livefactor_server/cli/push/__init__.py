"""`livefactor push`: the command, and the transfer of a file."""
