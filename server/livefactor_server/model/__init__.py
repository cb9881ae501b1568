"""The state of a model at one revision.

The backend holds the tables. The state also has the producers (for exactly-once delivery), the
labels, and the marks of unavailable items. `gate` alternates small reads and the writer.
`spec_codec` encodes and decodes specs.

A record changes each part at a cost that does not depend on the size of the part. Each part that
grows has a limit, and tells its memory (`ModelState.memory_bytes`).
"""
