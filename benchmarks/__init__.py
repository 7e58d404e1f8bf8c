"""Benchmarks: the gateway beside its peers on one core (`make bench`, docs/performance.md), and many workers simulated
(`scale`, docs/scale.md)."""
