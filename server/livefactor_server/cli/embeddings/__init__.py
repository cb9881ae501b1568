"""`livefactor push-embeddings` and `livefactor encode`: vectors of items."""
