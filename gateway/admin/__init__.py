"""The admin listener: health, metrics, purges, overrides, the console."""
