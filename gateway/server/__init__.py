"""Processes: the supervisor, its workers, listeners, reloads, the embedded Valkey."""
