"""Metrics, access log, traces, and the response headers that report the outcome of a request."""
