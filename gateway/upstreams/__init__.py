"""Requests to upstreams: connections, retries, circuit breakers, concurrency limits."""
