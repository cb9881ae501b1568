"""The log of one model: every record that changed it, in order, hashed into a chain.

A record is durable before it is applied. `format` describes every byte of a group, and `tail` those
of a tail slot. `store.Log` appends and reads records, `writer` writes groups, `walk` verifies them,
and `recovery` removes a tail that was never synced. `gaps` tells what a retention policy deleted.
`segments` makes files ahead of time. Only `disk` touches the disk.
"""
