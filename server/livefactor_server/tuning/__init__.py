"""The search for a spec on a user's own events: `livefactor tune`.

event file ─▶ events.py ─▶ Stream ─▶ progressive.py: a batch is judged, then learned ─▶ metrics.py
                                          ▲                                                 │
rules.py: what may be tried ─▶ search.py: Optuna's study in a folder ◀──────────────────────┘
                                          └─▶ the best spec ─▶ pictures.py, cli_tune.py

No server takes part: a trial is a backend that learns the stream in records, as `ApplyUpdates` would make them.
"""
