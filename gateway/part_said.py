"""What is said of a part in `Gateway-Parts`, where it takes more than a word. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def missing_text(what: str) -> str:
    """Of a part that lacks a value: a string of RFC 8941, which is ASCII, with quotes escaped."""
    text = what.encode("ascii", "replace").decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return f'skipped;missing="{text}"'


def list_text(counts: Mapping[str, int], failed: int, left_out: int, *, lost: bool, default: bool) -> str:
    """Of a list: how many of its elements became of what. `failed` is how many of them did; `lost` says whether the
    list has failed with them, `default` whether something stands in for it then."""
    told = ["failed" if lost else "partial" if failed else "list"]
    told += [f"{word}={count}" for word, count in counts.items()]
    if failed and not lost:
        told.append(f"failed={failed}")
    if left_out:
        told.append(f"left-out={left_out}")
    return ";".join([*told, "default"] if lost and default else told)
