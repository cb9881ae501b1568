"""Model specs: the fields, the limits that are checked, and the presets."""
