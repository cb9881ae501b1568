"""A model's state at one revision.

The backend holds the tables. Beside them stand the producers (exactly-once), the labels, and the items that are not
available. `gate` lets small reads and the writer take turns. `spec_codec` turns a spec into its logged bytes and back.
"""
