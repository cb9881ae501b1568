"""The GPU backend's machine: memory, launches, warps, and the order of gradients."""
