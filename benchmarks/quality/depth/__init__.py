"""Benchmarks of an adapted encoder, of adversarial training, and of forgetting."""
