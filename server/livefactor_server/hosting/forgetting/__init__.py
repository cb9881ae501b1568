"""Forgets users and items: a job with stages, which a crash at any moment only delays.

    forget.json ─▶ ERASE record: rows, labels and marks are cleared at once ─▶ the log is replayed
    without the subjects while the old tables serve ─▶ ERASED record, the states are swapped ─▶ a
    new snapshot, and the older ones are removed ─▶ segments are rewritten without the subjects,
    the one with the ERASE record last ─▶ report, and an EVIDENCE record with its hash ─▶
    forget.json is destroyed

`changes/history/erase.py` says what the records mean, and `log/erasing.py` how a segment is
rewritten. The file forget.json names the subjects until the job is done. A start that finds it goes
on with the job. `job` has the file, `survey` counts what names the subjects, and `forgetter`
carries the job out. `snapshots/erasures.py` has the report.
"""
