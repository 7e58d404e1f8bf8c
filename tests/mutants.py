"""`python -m tests.mutants`: breaks central lines of policy one by one, in a copy, and sees a test turn red for each.

What it prints is the line and the first test that noticed. Its status is 1 where a broken line went unnoticed. Words
as arguments run those mutants alone whose line or file holds one of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("gateway", "tests", "config", "demo", "pyproject.toml")
SECONDS = 600.0  # a loaded machine is slow, not broken


@dataclass(frozen=True)
class Mutant:
    """`line`, once in gateway/`module`.py, becomes `broken`; the tests in `tests` must notice."""

    module: str
    line: str
    broken: str
    tests: str

    def __str__(self) -> str:
        return f"{self.module}: {self.line.strip()}  →  {self.broken.strip()}"


MUTANTS = (
    Mutant("policy", "if now < ends.fresh:", "if now <= ends.fresh:", "test_policy"),
    Mutant(
        "policy", "    if facts.no_store:\n        return Bypass", "    if False:\n        return Bypass", "test_policy"
    ),
    Mutant(
        "policy",
        "return rules.ttl is not None or not facts.authorized or stored.life.shared",
        "return True",
        "test_policy",
    ),
    Mutant("policy", "(stored.life.strict or stored.life.no_cache)", "stored.life.no_cache", "test_policy"),
    Mutant(
        "policy", "return math.inf if stored.softened is None else stored.softened", "return math.inf", "test_policy"
    ),
    Mutant("admission", 'if directives.unqualified("private"):', "if False:", "test_policy"),
    Mutant("admission", 'if b"set-cookie" not in named:', "if False:", "test_policy"),
    Mutant(
        "admission",
        "if facts.authorized and not _shared_despite_authorization(directives):",
        "if False:",
        "test_policy",
    ),
    Mutant("admission", 'for name in ("s-maxage", "max-age"):', 'for name in ("max-age", "s-maxage"):', "test_policy"),
    Mutant("policy", "return ttl * (1.0 - rules.jitter * stored.jitter)", "return ttl", "test_policy"),
    Mutant(
        "validation",
        "return tag is not None and opaque_tag(tag) in",
        "return tag is not None and tag in",
        "test_policy",
    ),
    Mutant("policy", "return now < ends.error and not facts.no_cache", "return not facts.no_cache", "test_policy"),
    Mutant("headers", 'if "*" in names or not all', "if not all", "test_headers"),
    Mutant(
        "headers",
        "if pair[0] not in HOP_BY_HOP and pair[0] not in named",
        "if pair[0] not in HOP_BY_HOP",
        "test_headers",
    ),
    Mutant(
        "keys",
        'if keying.vary is not None and keying.authorization == "pass" and has(headers, b"authorization"):',
        "if False:",
        "test_keys",
    ),
    Mutant(
        "keys", "return Plan(primary, _with_identity(primary, counted),", "return Plan(primary, primary,", "test_keys"
    ),
    Mutant("epochs", "if name in hard and hard[name] > position:", "if False:", "test_purging"),
    Mutant("record", "stored.key == key and _plausible(stored)", "_plausible(stored)", "test_record"),
)


def tried(mutant: Mutant) -> str | None:
    """The first test that notices; None where none does."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        file = copy / "gateway" / f"{mutant.module}.py"
        text = file.read_text()
        if text.count(mutant.line) != 1:
            raise SystemExit(f"{mutant}: the line stands {text.count(mutant.line)} times there; mend this list")
        file.write_text(text.replace(mutant.line, mutant.broken))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutant.tests}.py"]
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=SECONDS, check=False)
    if ran.returncode == 0:
        return None
    found = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or found is None:
        raise SystemExit(f"{mutant}: the tests could not be run\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return found[1]


def main(words: Sequence[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in str(mutant) for word in words)]
    unnoticed = 0
    for mutant in chosen:
        noticed = tried(mutant)
        unnoticed += noticed is None
        print(f"{mutant}\n    {noticed or 'UNNOTICED'}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} broken lines turned a test red")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
