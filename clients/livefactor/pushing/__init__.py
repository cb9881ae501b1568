"""How a `Producer` delivers rows: in batches, none of which is applied twice.

`producer` is what callers use. `batching` holds the rows of a push until they are acknowledged, and
`labels` the texts of string ids. `delivery` decides which batch is sent next and what an answer
means, without threads or a clock. `sending` runs the streams on a background thread.
"""
