"""HTTP messages as values: fields, targets, parsers, ranges (RFC 9110, RFC 9112). Pure: no await, clock or I/O."""
