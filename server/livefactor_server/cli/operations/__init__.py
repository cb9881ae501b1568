"""Commands for whoever runs a server: `doctor`."""
