"""The models of a server: creates, opens, recovers, restores, deletes, describes and drains them.

A hosted model has an engine, a reader, and a keeper that takes its snapshots. A data folder belongs
to one server at a time, which holds its lock.
"""
