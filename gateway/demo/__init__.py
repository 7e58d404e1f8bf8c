"""The demo: a slow shop (`gateway.demo.shop`), and `gateway demo`, which puts the gateway in front of it."""
