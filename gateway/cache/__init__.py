"""The cache: engine, coalescing, two-tier store, leases, background work."""
