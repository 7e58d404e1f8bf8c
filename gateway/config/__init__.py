"""The configuration: models, sources and their precedence, live overrides."""
