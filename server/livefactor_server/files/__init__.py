"""Reads and writes files for people: events in csv and parquet, model specs in TOML."""
