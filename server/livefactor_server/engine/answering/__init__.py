"""Answers to Score calls at one revision: candidates, the best and similar items, queries."""
