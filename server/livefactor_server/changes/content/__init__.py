"""What is said of users and items: embeddings, features, and factors of another model."""
