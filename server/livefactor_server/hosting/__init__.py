"""The models of one server, and when their snapshots are taken."""
