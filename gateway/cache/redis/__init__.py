"""The Redis side of the cache: shared entries, leases, purge stream, overrides, advice."""
