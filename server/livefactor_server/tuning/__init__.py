"""A user's own events: the search for a spec (`livefactor tune`), and figures (`evaluate`).

event file ─▶ events.py ─▶ Stream ─▶ progressive.py: test, then learn a batch ─▶ metrics.py
                                          ▲                                                 │
starts.py: the presets first ─▶ search.py: Optuna's study in a folder ◀─────────────────────┘
challenging/rules.py: search spaces ──▲   └─▶ the best spec ─▶ pictures.py, cli/tune

The search needs no server. A trial is a backend that learns the stream in records of the size that
`ApplyUpdates` would make. `evaluation.py` judges given specs in the same way, beside most-popular
and the opponent in `opponents.py`.
"""
