"""Explains one request: its route, its key, the stored response, and the cache's decision."""
