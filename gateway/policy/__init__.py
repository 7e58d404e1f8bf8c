"""What a shared cache may store and reuse (RFC 9111, RFC 5861). Pure: no await, clock or I/O."""
