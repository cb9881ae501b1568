"""The judge measures the quality of a live model (docs/guides/judge.md).

It tests the model on each event before the model learns the event. This is progressive validation,
or test-then-learn (Gama, Sebastião, Rodrigues: On evaluating stream learning algorithms, Machine
Learning 90, 2013). The judge only reads: the state and the answers do not depend on it.

    metrics     losses, ranks and ranking metrics, as pure functions of arrays
    windows     the last judged events, from which windowed and decayed figures are computed
    popularity  the most-popular baselines, plain and decayed
    choice      draws by counter: the judged events and the items that they are ranked against
    scoring     scores and ranks of the judged events
    places      places of events in exact lists, for `livefactor tune` and challengers
    drift       change detection with ADWIN on the series of losses and hits
    bounds      early warnings
    hold        stops updates until an operator releases them
    judge       combines these, once per run of records
    observer    runs the judge beside an engine; logs, counts and holds
    report      the results as plain values
    board       the figures as TensorBoard event files
"""
