"""Scores of candidates and exact top-k lists."""
