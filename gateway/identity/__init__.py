"""Who a request comes from: tokens, API keys, and what of them selects a stored response."""
