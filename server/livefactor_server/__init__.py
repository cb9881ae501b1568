"""The livefactor server: models that learn from every batch of a log, in order, while they answer.

    client                rpc               engine: LOG stage            engine: APPLY stage
    ──────                ───               ─────────────────            ───────────────────
    batch ──────────────▶ decode, check ──▶ admit ─▶ seal
                                            append, sync ─▶ log
                                            place (keys → rows) ───────▶ apply ─▶ model's state
                                                                         publish the revision
    ack ◀─────────────────────────────────────────────────────────────── acknowledge

    score ──────────────▶ decode ─────────▶ readers: gate or pin ──────▶ the state at one revision
    snapshot ───────────▶ keeper ─────────▶ pin ─▶ rows, hashed and written ─▶ whole folder
    start                 hosting ────────▶ newest good snapshot ─▶ log behind it ─▶ place, apply

`state(r) = apply(spec at r, log[1..r])`: a record is durable before it is applied, and visible
before it is acknowledged. Restart, audit and the live engine send records through the same two
functions of `changes`.

Rooms, each of which imports only those below it:

    cli                    the command line
    workers                processes that answer scores beside the one that learns
    console, rpc, tuning   pages for a browser; messages and handlers; the search for a spec
    hosting, files         the models of a server; events and specs in files
    challenging            other specs that learn the same log
    engine                 the only writer of a model, and its readers
    judging                what the model is worth, measured before it learns
    snapshots              states on disk, replay, audit
    changes                what a record asks of a model, one file a kind
    model                  the state at one revision
    log                    the records, durable and hashed
    access                 TLS, tokens and roles
    telemetry              request ids, lines and spans of calls
    metrics, statuses      what Prometheus reads; how a call can end
    text                   text of peers, cut and escaped
"""
