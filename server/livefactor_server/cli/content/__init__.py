"""`livefactor push-embeddings`, `encode` and `push-features`: what items and users are."""
