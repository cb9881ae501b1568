"""What users and items are: embeddings and features."""
