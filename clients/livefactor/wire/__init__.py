"""Arrays to the bytes of the contract's messages, and back.

The client and the server share these functions. `arrays`, `ids` and `times` convert the data of
callers to arrays of the contract's dtypes. `keys` turns string ids into 64-bit keys. `columns`
writes and reads batches of updates, and `scoring` writes and reads score calls. Both use the
message classes of `twins`, whose columns are bytes, so that no element becomes a Python object.
"""
