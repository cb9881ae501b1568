"""The search for a spec on a user's own events: `livefactor tune`.

event file ─▶ events.py ─▶ Stream ─▶ progressive.py: test, then learn a batch ─▶ metrics.py
                                          ▲                                                 │
rules.py: search spaces ─▶ search.py: Optuna's study in a folder ◀──────────────────────────┘
                                          └─▶ the best spec ─▶ pictures.py, cli/tune.py

The search needs no server. A trial is a backend that learns the stream in records of the size that
`ApplyUpdates` would make.
"""
