"""Arrays to packed message bytes and back, shared with the server."""
