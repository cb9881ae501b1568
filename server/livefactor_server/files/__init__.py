"""Files that people write: events in csv and parquet, model specs in TOML."""
