"""Declared routes, the `@cached` decorator, and fastapi-cache2's `@cache`."""
