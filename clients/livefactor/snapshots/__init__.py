"""Snapshots: their format, their hashes, and how to check and load one. The client and the server share this.

`format` says where every byte lies, and `digest` how a state is hashed. `files` reads and verifies a folder before
anything in it is used. `content` checks what right hashes alone do not prove.
"""
