"""Snapshots: their format, their hashes, and how to check and load one.

The client and the server share this. `sections` lists what a snapshot holds. `format` says where
every byte lies, and `digest` how a state is hashed. `files` verifies a folder before anything in it
is used. `content` checks what valid hashes alone do not prove. `loaded` has the arrays by their
names, and `scores` computes the server's scores from them.
"""
