"""Load tests for users: `make load URL=…`. See docs/load-testing.md."""
