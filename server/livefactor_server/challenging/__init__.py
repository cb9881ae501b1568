"""Challengers: other specs that learn a model's log beside the champion, the spec that serves.

    contests.py     one thread: starts one process at a time
    challengers.py  of one model: adds, lists, settles; acts on verdicts
    schedule.py     when a contest begins, and what it may cost
    notes.py        what survives a restart
    sharing.py      a challenger that answers a share of the users; outcomes.py counts what they do
    candidates.py   which specs are tried
    keeping.py      snapshots of challengers, so that a restart need not learn them again
    process.py ─ messages.py ─ worker.py    the pipes between the server and the process
                                 │
             log ─▶ steps.py ─▶ contestants.py: judge, then learn ─▶ contest.py: the verdict

A contest is a function of the log and its plan. It harms nobody: it runs in a process of its own,
with the lowest priority and a share of one core (`pace.py`), it reads only synced records, and no
acknowledgement waits for it. A verdict becomes effective by a SWITCH record
(`changes/history/switch.py`).
"""
