"""The log of one model: every record that changed it, in order, hashed into a chain.

A record is durable before it is applied. `format` says where every byte of a record lies.
`store.Log` appends and reads, `walk` verifies, `recovery` puts right a tail that was never synced,
`segments` makes files ahead of time, and `disk` is the one place that touches the disk.
"""
