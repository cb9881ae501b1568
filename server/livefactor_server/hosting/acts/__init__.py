"""What an operator decides about the history of a model: rollbacks, and batches in quarantine."""
