"""`python -m tests.mutants`: breaks central lines and guards one by one, in a copy, and sees a test turn red for each.

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
    Mutant("part_source", "if own else planned.base", "if False else planned.base", "test_part_failures"),
    Mutant(
        "part_source",
        "stands_in = ask.plan.bypass is None and failure.backs_off",
        "stands_in = failure.backs_off",
        "test_part_failures",
    ),
    Mutant("part_source", "return self.kind in _OF_ALL", "return True", "test_part_failures"),
    Mutant("json_text", "return _loaded(text) if _at_risk(text) else value", "return value", "test_json_text"),
    Mutant("part_plan", "if len(taken) == 1 and absent", "if False and absent", "test_part_query"),
    Mutant("codings", "if len(body) > limit:", "if False:", "test_codings"),
)


GUARDS = (
    # What Redis says: by the pipe, in records, in leases, in the streams.
    Mutant("redis_pipe", "if reply != asked.mark and not refused:", "if False:", "test_redis_pipe"),
    Mutant("redis_pipe", "if left <= 0 and self._overdue:", "if False:", "test_redis_pipe"),
    Mutant("redis_pipe", "if left <= 0 and self._overdue:", "if left <= 0:", "test_redis_pipe"),
    Mutant("redis_values", "if self._pending > self.most:", "if False:", "test_redis_planted"),
    Mutant("shared", "if value is not None and len(value) > self.largest:", "if False:", "test_redis_planted"),
    Mutant("tiers", " or len(stored.body) > wanted.largest:", ":", "test_redis_planted"),
    Mutant("edge_shared", "elif len(stored.body) > largest:", "elif False:", "test_edge_shared"),
    Mutant("records", "known.is_like(data) and is_sealed(data, self._secret)", "known.is_like(data)", "test_records"),
    Mutant("purge_stream", "if room < 0 or size > LARGEST or", "if", "test_redis_planted"),
    Mutant("purge_stream", "(msgspec.DecodeError, ValueError,", "(msgspec.DecodeError,", "test_redis_planted"),
    Mutant("redis_leases", "        self._spawn(self._give_up(name, token))\n", "", "test_leases"),
    Mutant("redis_leases", "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end", "", "test_leases"),
    Mutant(
        "plain_connections",
        "return self.usable and not self._poll.poll(0)",
        "return self.usable",
        "test_crossed_answers",
    ),
    Mutant("plain_connections", "after=QUIET if self._quiet else 0.0", "after=0.0", "test_crossed_answers"),
    Mutant("response_heads", "keeps=head.keeps and expected", "keeps=head.keeps", "test_response_heads"),
    Mutant("response_heads", "not (status == 205 and (chunked or length))", "True", "test_response_heads"),
    Mutant("transport", "        if not self._asked:", "        if False:", "test_crossed_answers"),
    Mutant("transport", "and not self._poll.poll(0)", "", "test_crossed_answers"),
    Mutant("fetching", "if personal and not better:", "if False:", "test_failures"),
    Mutant("fetching", "key = self._own_key(ask) if own else ask.plan.base", "key = ask.plan.base", "test_failures"),
    Mutant("fetching", "if identity and not self._is_shared(ask) else key", "if identity else key", "test_waiting"),
    Mutant("fetching", "status == 429 and not ask.route.local", "status == 429", "test_failures"),
    Mutant("engine", "to_share = not personal and (", "to_share = (", "test_failures"),
    Mutant("engine", "list(identity) == identity_of(ask)", "True", "test_failures"),
    Mutant("engine", "if answer is Useless.TO_ME and key == before:", "if False:", "test_failures"),
    Mutant("flight", "if serves(self._preview) else None", "if True else None", "test_waiting"),
    Mutant("flying", "            flight.release()", "            pass", "test_waiting"),
    Mutant("breakers", "if client is not None and not self._counts_of(count, client):", "if False:", "test_breakers"),
    Mutant("admission", "max(0.0, seconds), LONGEST_REST)", "max(0.0, seconds), 1e9)", "test_failures"),
    Mutant("admission", "if _is_endless(received.headers):", "if False:", "test_policy"),
    Mutant("flying", "(lease.stored or _looked_long_ago(ask))", "False", "test_leases"),
    Mutant("flying", "min(patience, DOUBTED) if self._leases.doubtful else patience", "patience", "test_leases"),
    Mutant("deadlines", "if now - self._due > LATE:", "if False:", "test_deadlines"),
    # Slow clients.
    Mutant("edge", "            if self._known:\n", "            if True:\n", "test_door"),
    Mutant("edge", "if self._sent < READ_RATE * self.door.timeouts.write:", "if not self._sent:", "test_door"),
    Mutant("door", "            if now > until:", "            if False:", "test_door"),
    Mutant("listeners", "socket.TCP_NOTSENT_LOWAT, UNSENT)", "socket.TCP_NOTSENT_LOWAT, 2**30)", "test_listeners"),
    # Answers without the app: memos, joins, the direct pass.
    Mutant("memos", "            or self._epochs.version != memo.version\n", "", "test_memos"),
    Mutant("memos", "            or source.turn != memo.source_turn\n", "", "test_memos"),
    Mutant("edge_pass", "if any(name in _FOR_THE_APP for name, _ in fields):", "if False:", "test_edge_pass"),
    Mutant("direct", 'path + "/{path:path}" if isinstance(route, Mount) else path', "path", "test_edge_pass"),
    # What is told outside.
    Mutant("admin_host", "if not is_known(host, self._configured()):", "if False:", "test_operations"),
    Mutant("inside", 'if name == b"link":', "if False:", "test_gateway"),
)
"""Guards that faults and hostile input are met by; each taken out turns a test red."""


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
        options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--timeout", "120"]
        command = [sys.executable, "-m", "pytest", *options, f"tests/{mutant.tests}.py"]
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=SECONDS, check=False)
    if ran.returncode == 0:
        return None
    found = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != 1 or found is None:
        raise SystemExit(f"{mutant}: the tests could not be run\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return found[1]


def main(words: Sequence[str]) -> int:
    chosen = [mutant for mutant in (*MUTANTS, *GUARDS) if not words or any(word in str(mutant) for word in words)]
    unnoticed = 0
    for mutant in chosen:
        noticed = tried(mutant)
        unnoticed += noticed is None
        print(f"{mutant}\n    {noticed or 'UNNOTICED'}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} broken lines turned a test red")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
