"""Speed, measured beside opponents and limits."""
