"""The models of one server: created, opened with recovery, restored, deleted, described, drained.

A hosted model is an engine, a reader, and a keeper that takes its snapshots. The data folder belongs to one server at a
time, which holds its lock.
"""
