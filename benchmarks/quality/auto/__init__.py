"""Preset `auto` on more data sets, beside the other presets and tuned opponents."""
