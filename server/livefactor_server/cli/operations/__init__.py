"""Commands for whoever runs a server: `doctor`, `health`, `backup` and `restore`."""
