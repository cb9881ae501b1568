"""The judge: says how good a live model is, by testing each event's model before it learns the event (docs/judge.md).

Progressive validation, also called test-then-learn (Gama, Sebastião, Rodrigues: On evaluating stream learning
algorithms, Mach Learn 90, 2013). The judge only reads: no state and no answer depends on it.

    metrics     what a prediction or a ranking is worth: pure functions of arrays
    windows     the last judged events, and their figures over a window and decayed
    popularity  most-popular, plain and decayed: the floor that every figure is shown beside
    choice      which events are judged, and among which items: draws by counter
    scoring     the chosen events as the model stands: scores, losses, ranks
    drift       ADWIN over the series of losses and hits
    bounds      early warnings
    hold        updates stopped until an operator releases them
    judge       all of it, run by run
    report      what it found, for people and programs
    board       the figures as TensorBoard event files
"""
