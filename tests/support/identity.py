"""What an answer consists of whose every byte must come back: 40 fields, two lines of Vary, a binary body."""

from __future__ import annotations

BODY = bytes(range(256)) * 41
FIELDS = [(f"X-Field-{number:02}", f'value {number}; q=0.{number}, "quoted, too"') for number in range(38)]
FIELDS += [("X-Twice", "one"), ("X-Twice", "two")]
VARY = [("Vary", "Accept"), ("Vary", "Accept-Language")]
