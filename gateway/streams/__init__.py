"""Event streams that many clients share: one from the upstream, for each key and worker."""
