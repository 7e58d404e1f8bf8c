"""What another TTL would do: reuse distances per route, and the recommendation made of them."""
