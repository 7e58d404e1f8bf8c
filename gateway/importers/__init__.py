"""Configurations made of what describes an API elsewhere."""
