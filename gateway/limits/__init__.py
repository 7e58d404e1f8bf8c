"""Limits on how much each subject may request: over all workers, with and without Redis."""
