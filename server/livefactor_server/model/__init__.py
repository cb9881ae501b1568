"""The state of a model at one revision.

The backend holds the tables. The state also has the producers (for exactly-once delivery), the
labels, and the unavailable items. `gate` alternates small reads and the writer. `spec_codec`
encodes and decodes specs.
"""
