"""The demo: a slow shop (`demo.shop`), and `python -m demo`, which puts the gateway in front of it."""
