"""Arrays to the bytes of the contract's messages, and back. The client and the server share these functions.

`arrays` converts what callers have to arrays of the contract's dtypes, and `keys` turns string ids into 64-bit
keys. `columns` writes and reads batches of updates, `scoring` writes and reads score calls. `twins` gives both of
them message classes whose columns are bytes, so that no element becomes a Python object.
"""
