"""`push-embeddings`, `encode`, `adapt` and `push-features`: what items and users are."""
