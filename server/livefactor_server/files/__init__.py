"""Files that users bring: events in csv and parquet, with faults reported by row, and specs in TOML."""
