"""Files that users bring: events in csv and parquet (faults by row), and specs in TOML."""
