"""Aggregates: one response joined from the responses of several parts."""
