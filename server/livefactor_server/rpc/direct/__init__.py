"""Calls that are answered without asyncio: `Score` and `ApplyUpdates`, the two that come most."""
