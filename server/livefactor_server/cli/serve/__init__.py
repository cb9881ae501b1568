"""`livefactor serve` and `livefactor warmup`: commands, settings, the process of a server."""
