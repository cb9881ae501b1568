"""The log of one model.

`format` defines the bytes, `store` appends and reads records, `walk` verifies them, `recovery`
repairs the tail when a log is opened, `segments` makes the files, and `show` prints them.
"""
