"""What a model's state is a function of, beside its log: its spec.

`state(r) = apply(spec, log[1..r])`. Two models with equal specs and equal logs have bit-identical
tables on every supported machine. So every number of a spec is part of the contract, and is
rounded once to float32 where the arithmetic uses it. `checks.check` refuses a spec whose numbers
could make a table value infinite or NaN: call it before a backend gets the spec. `presets` has a
checked spec for each task.
"""
