"""The effect of other TTLs: reuse distances per route, and the resulting recommendation."""
