"""Following a leader: a server takes the logs of another one, and answers from them.

    leader ── CopyModel ─▶ files of a new model ─▶ open ─┐
                                                         ▼
    leader ── FollowLog ─▶ records ─▶ `engine/following.py`: verify, append, sync, apply
                ▲                                        │
                └──────── again after a break ───────────┘

`copying` sends and receives the files of a model, as a backup has them. `tail` reads the records
for one follower. `leader` makes the calls. `follower` has a thread for each model, and one that
looks for models that the leader has and this server lacks.
"""
