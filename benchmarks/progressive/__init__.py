"""Quality of a stream, test-then-learn, beside simple opponents."""
