"""The spec of a model: together with the log it determines the state.

`state(r) = apply(spec, log[1..r])`. Two models with equal specs and equal logs have bit-identical
tables on every supported machine. So every number of a spec is part of the contract. The arithmetic
rounds it once to float32. `checks.check` refuses a spec whose numbers could make a table value
infinite or NaN. Call it before a backend gets the spec. `presets` has a checked spec for each task.
"""
