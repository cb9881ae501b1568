"""Commands for whoever runs a server: `doctor` and `health`."""
