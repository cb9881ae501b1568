"""Progressive quality (test-then-learn) on two streams, contrasted with simple baselines."""
