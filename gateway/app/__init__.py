"""The composition root: the ASGI application, its middleware, its OpenAPI document."""
