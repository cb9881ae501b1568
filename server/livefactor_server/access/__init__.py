"""Who may call what: roles, grants and certificates.

A server without an access file serves everybody who reaches it. With one, every call needs a grant
of that file. A grant belongs to a bearer token, of which the file holds the SHA-256 hash, or to the
name in a client certificate. It has one role, and it covers some models or all of them.

    producer  sends updates
    consumer  asks for scores
    auditor   takes, lists and reads snapshots, explains scores, lists producers, follows logs
    admin     everything, also creating, restoring and deleting models

All roles may describe and list the models that they cover. The table of RPCs (`rpc/service.py`) has
the roles of each RPC. The health service needs no grant, so that load balancers can ask it.

A token has 256 random bits, so its plain SHA-256 hash can neither be guessed nor inverted.
"""
