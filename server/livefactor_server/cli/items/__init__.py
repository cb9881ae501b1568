"""Commands about items: which are similar, what describes them, and lists of the best for users."""
