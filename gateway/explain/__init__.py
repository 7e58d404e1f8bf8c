"""Explains one request: which route, which key, what is stored, what the cache would do."""
