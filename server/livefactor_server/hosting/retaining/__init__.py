"""Keeping a log short: which segments go, and where they go to.

`retention` decides and deletes. `archive` is the one seam to a place for segments: a folder, or a
URL of fsspec. Erasures read the archive through it, and write to it (`hosting/forgetting`).
"""
