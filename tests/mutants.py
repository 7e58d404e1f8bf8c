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
COPIED = ("gateway", "tests", "config", "pyproject.toml")
SECONDS = 600.0  # a loaded machine is slow, not broken


@dataclass(frozen=True)
class Mutant:
    """`line`, once in the module `module` of the package, becomes `broken`; the tests in `tests` must notice."""

    module: str
    line: str
    broken: str
    tests: str

    def file(self, root: Path = ROOT) -> Path:
        return root / "gateway" / f"{self.module.replace('.', '/')}.py"

    def __str__(self) -> str:
        return f"{self.module}: {self.line.strip()}  →  {self.broken.strip()}"


MUTANTS = (
    Mutant("policy.freshness", "if now < ends.fresh:", "if now <= ends.fresh:", "unit/policy/test_freshness"),
    Mutant(
        "policy.freshness",
        "    if facts.no_store:\n        return Bypass",
        "    if False:\n        return Bypass",
        "unit/policy/test_freshness",
    ),
    Mutant(
        "policy.freshness",
        "return rules.ttl is not None or not facts.authorized or stored.life.shared",
        "return True",
        "unit/policy/test_freshness",
    ),
    Mutant(
        "policy.freshness",
        "(stored.life.strict or stored.life.no_cache)",
        "stored.life.no_cache",
        "unit/policy/test_freshness",
    ),
    Mutant(
        "policy.freshness",
        "soft = math.inf if stored.softened is None else stored.softened",
        "soft = math.inf",
        "unit/policy/test_freshness",
    ),
    Mutant(
        "policy.storability",
        'if directives.unqualified("private") and not own:',
        "if False:",
        "unit/policy/test_storability",
    ),
    Mutant("policy.storability", 'if b"set-cookie" not in named:', "if False:", "unit/policy/test_storability"),
    Mutant(
        "policy.storability",
        "if authorized and not _shared_despite_authorization(directives):",
        "if False:",
        "unit/policy/test_storability",
    ),
    Mutant(
        "policy.storability",
        'seconds = directives.seconds("s-maxage")',
        'seconds = directives.seconds("max-age")',
        "unit/policy/test_storability",
    ),
    Mutant(
        "policy.freshness",
        "return ttl * (1.0 - rules.jitter * stored.jitter)",
        "return ttl",
        "unit/policy/test_freshness",
    ),
    Mutant(
        "policy.validation",
        "return tag is not None and opaque_tag(tag) in",
        "return tag is not None and tag in",
        "unit/policy/test_validation",
    ),
    Mutant(
        "policy.freshness",
        "return now < ends.error and not facts.no_cache",
        "return not facts.no_cache",
        "unit/policy/test_freshness",
    ),
    Mutant("http.headers", 'if "*" in names or not all', "if not all", "unit/http/test_headers"),
    Mutant(
        "http.headers",
        "return [pair for pair in kept if pair[0] not in named]",
        "return kept",
        "unit/http/test_headers",
    ),
    Mutant(
        "policy.keys",
        'if keying.vary is not None and keying.authorization == "pass" and has(headers, b"authorization"):',
        "if False:",
        "unit/policy/test_keys",
    ),
    Mutant(
        "policy.keys",
        "return Plan(primary, base, forward, None, (*_identities(keying, counted), *user))",
        "return Plan(primary, primary, forward, None, (*_identities(keying, counted), *user))",
        "unit/policy/test_keys",
    ),
    Mutant(
        "policy.epochs", "if name in hard and hard[name] > position:", "if False:", "unit/cache/redis/test_purge_log"
    ),
    Mutant(
        "policy.entry", "stored.key == key and may_be_shared(stored)", "may_be_shared(stored)", "unit/policy/test_entry"
    ),
    Mutant(
        "aggregates.part_source",
        "if own else planned.base",
        "if False else planned.base",
        "unit/aggregates/test_part_source",
    ),
    Mutant(
        "aggregates.part_source",
        "stands_in = request.plan.bypass is None and failure.backs_off",
        "stands_in = failure.backs_off",
        "unit/aggregates/test_part_source",
    ),
    Mutant(
        "aggregates.runner",
        "if request is None or not request.exchange.leading:",
        "if True:",
        "unit/aggregates/test_runner",
    ),
    Mutant(
        "edge.head_template",
        "close, (*spent,), states, deciding)",
        "close, (*spent,), len(states), deciding)",
        "unit/edge/test_head_template",
    ),
    Mutant(
        "aggregates.part_result",
        "return self.kind in _OF_ALL",
        "return True",
        "unit/aggregates/test_part_source",
    ),
    Mutant(
        "http.json_text",
        "return _loaded(text) if _at_risk(text) else value",
        "return value",
        "unit/http/test_json_text",
    ),
    Mutant(
        "config.part_values",
        "if len(taken) == 1 and absent",
        "if False and absent",
        "unit/aggregates/test_part_source_query",
    ),
    Mutant("http.codings", "if len(body) > limit:", "if False:", "unit/cache/test_compression"),
)


GUARDS = (
    # The place and the fields of a request, and limits of a route.
    Mutant("http.forwarding", "if peer not in self:", "if False:", "unit/http/test_forwarding"),
    Mutant(
        "edge.protocol",
        "if block.prefixed and edge.has_another_prefix(block, self._peer):\n            self._line",
        "if False:\n            self._line",
        "unit/app/test_middleware",
    ),
    Mutant("policy.keys", "if keying.sent:", "if False:", "unit/routing/test_declared"),
    Mutant(
        "policy.downstream",
        'if b"vary" in self.changes.removed:',
        "if False:",
        "unit/policy/test_downstream",
    ),
    Mutant("policy.downstream", "if not forbids:", "if True:", "unit/policy/test_downstream"),
    Mutant(
        "routing.responses",
        "if self._largest is not None and size > self._largest:",
        "if False:",
        "unit/routing/test_declared_limits",
    ),
    Mutant("routing.upstream_request", "if int(length) > largest:", "if False:", "unit/routing/test_declared_limits"),
    # What Redis says: by the pipe, in records, in leases, in the streams.
    Mutant(
        "cache.redis.reader",
        "if not isinstance(mark, hiredis.ReplyError):",
        "if False:",
        "unit/cache/redis/test_reader",
    ),
    Mutant("cache.redis.reader", "if refusals and any_refusal(own):", "if refusals:", "unit/cache/redis/test_reader"),
    Mutant("cache.redis.reader", "if left <= 0 and self._overdue:", "if False:", "unit/cache/redis/test_reader"),
    Mutant("cache.redis.reader", "if left <= 0 and self._overdue:", "if left <= 0:", "unit/cache/redis/test_reader"),
    Mutant(
        "cache.redis.connection", "if self._pending > self.most:", "if False:", "unit/cache/redis/test_store_planted"
    ),
    Mutant(
        "cache.redis.store",
        "if value is not None and len(value) > self.largest:",
        "if False:",
        "unit/cache/redis/test_store_planted",
    ),
    Mutant("cache.store", " or len(stored.body) > wanted.largest:", ":", "unit/cache/redis/test_store_planted"),
    Mutant("edge.shared_lookup", "elif len(stored.body) > largest:", "elif False:", "unit/edge/test_shared_lookup"),
    Mutant(
        "edge.shared_lookup",
        "known.is_like(data) and is_sealed(data, self._secret)",
        "known.is_like(data)",
        "unit/edge/test_shared_lookup",
    ),
    Mutant(
        "cache.redis.record_stream", "if room < 0 or size > LARGEST or", "if", "unit/cache/redis/test_store_planted"
    ),
    Mutant(
        "cache.redis.purge_log",
        "(msgspec.DecodeError, ValueError,",
        "(msgspec.DecodeError,",
        "unit/cache/redis/test_store_planted",
    ),
    Mutant(
        "cache.redis.leases",
        "        self._spawn(self._give_up(name, token, mark, life))\n",
        "",
        "unit/cache/redis/test_leases",
    ),
    Mutant(
        "cache.redis.leases",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end",
        "",
        "unit/cache/redis/test_leases",
    ),
    Mutant(
        "upstreams.connection",
        "not self._transport.is_closing() and not self._poll.poll(0)",
        "not self._transport.is_closing()",
        "unit/upstreams/test_connection",
    ),
    Mutant(
        "upstreams.connection",
        "after=QUIET if self._quiet else 0.0",
        "after=0.0",
        "unit/upstreams/test_connection",
    ),
    Mutant(
        "http.response_parser", "keeps=head.keeps and expected", "keeps=head.keeps", "unit/http/test_response_parser"
    ),
    Mutant(
        "http.response_parser", "not (status == 205 and (chunked or length))", "True", "unit/http/test_response_parser"
    ),
    Mutant(
        "http.response_parser",
        'name.endswith(b"cache-control") or',
        "",
        "unit/http/test_response_parser",
    ),
    Mutant(
        "http.response_parser",
        "len(set(names)) < len(names) or ",
        "",
        "unit/http/test_response_parser",
    ),
    Mutant(
        "http.response_parser",
        "self._times == _TIMES and not _ODD_END_OF_LINE.search(data)",
        "self._times == _TIMES",
        "unit/http/test_response_parser",
    ),
    Mutant("http.response_parser", "if each is not form]", "]", "unit/http/test_response_parser"),
    Mutant("policy.storability", "not _READ.isdisjoint(form.names)", "False", "unit/policy/test_storability"),
    Mutant(
        "policy.storability",
        'b"date" not in names or b"content-length" not in names',
        'b"date" not in names',
        "unit/policy/test_storability",
    ),
    Mutant("cache.respond", "known if is_whole else None", "known", "unit/cache/test_respond"),
    Mutant(
        "edge.head_template",
        "if exchange.parts or exchange.rate_limit:",
        "if exchange.parts:",
        "unit/edge/test_head_template",
    ),
    Mutant(
        "upstreams.receiver",
        "        if not self._asked:\n            self.force_close()",
        "        if False:\n            self.force_close()",
        "unit/upstreams/test_connection",
    ),
    Mutant("upstreams.receiver", "and not self._poll.poll(0)", "", "unit/upstreams/test_connection"),
    Mutant("cache.fetch", "if personal and not better:", "if False:", "unit/cache/test_coalescer_failures"),
    Mutant(
        "cache.fetch",
        "key = self._own_key(request) if own else request.plan.base",
        "key = request.plan.base",
        "unit/cache/test_coalescer_failures",
    ),
    Mutant(
        "cache.fetch",
        "if identity and not self._is_shared(request) else key",
        "if identity else key",
        "unit/cache/test_coalescer",
    ),
    Mutant(
        "cache.fetch",
        "status == 429 and not request.route.local",
        "status == 429",
        "unit/cache/test_coalescer_failures",
    ),
    Mutant("cache.engine", "to_share = not personal and (", "to_share = (", "unit/cache/test_coalescer_failures"),
    Mutant("cache.engine", "list(identity) == identity_of(request)", "True", "unit/cache/test_coalescer_failures"),
    Mutant(
        "cache.engine",
        "if answer is Useless.TO_ME and key == before:",
        "if False:",
        "unit/cache/test_coalescer_failures",
    ),
    Mutant("cache.flight", "if serves(self._preview) else None", "if True else None", "unit/cache/test_coalescer"),
    Mutant("cache.coalescer", "            flight.release()", "            pass", "unit/cache/test_coalescer"),
    Mutant(
        "upstreams.hosts",
        "if client is not None and not self._counts_of(count, client):",
        "if False:",
        "unit/upstreams/test_hosts_breaker",
    ),
    Mutant(
        "policy.storability",
        "max(0.0, seconds), LONGEST_REST)",
        "max(0.0, seconds), 1e9)",
        "unit/cache/test_coalescer_failures",
    ),
    Mutant("policy.storability", "if is_endless(received.headers):", "if False:", "unit/policy/test_storability"),
    Mutant("cache.leases", "asked >= LIFE / 2", "asked >= LIFE * 1000", "unit/cache/test_leases"),
    Mutant("cache.leases", "STORED if lease.stored else None", "None", "unit/cache/test_leases"),
    Mutant("cache.coalescer", "(lease.stored or _looked_long_ago(ask))", "False", "unit/cache/test_leases"),
    Mutant(
        "cache.coalescer",
        "min(patience, DOUBTED) if self._leases.doubtful else patience",
        "patience",
        "unit/cache/test_leases",
    ),
    Mutant(
        "cache.redis.connection",
        "if now - self._due > LATE:",
        "if False:",
        "unit/cache/redis/test_connection",
    ),
    # Slow clients.
    Mutant(
        "edge.client_connection",
        "            if self._known:\n",
        "            if True:\n",
        "unit/edge/test_client_connection",
    ),
    Mutant(
        "edge.guard",
        "slow = self._read < READ_RATE * limit",
        "slow = not self._read",
        "unit/edge/test_client_connection",
    ),
    Mutant("edge.guard", "            if now > until:", "            if False:", "unit/edge/test_guard"),
    Mutant(
        "server.listener",
        "socket.TCP_NOTSENT_LOWAT, UNSENT)",
        "socket.TCP_NOTSENT_LOWAT, 2**30)",
        "unit/server/test_listener",
    ),
    # Answers without the app: memos, joins, the direct pass.
    Mutant(
        "edge.response_memos",
        "            or self._epochs.version != memo.version\n",
        "",
        "unit/edge/test_response_memos",
    ),
    Mutant(
        "edge.response_memos", "            or source.turn != memo.source_turn\n", "", "unit/edge/test_response_memos"
    ),
    Mutant(
        "edge.passthrough",
        "if any(name in _FOR_THE_APP for name, _ in fields):",
        "if False:",
        "unit/edge/test_passthrough",
    ),
    Mutant(
        "edge.direct_routes",
        'path + "/{path:path}" if isinstance(route, Mount) else path',
        "path",
        "unit/edge/test_passthrough",
    ),
    # What is told outside.
    Mutant("admin.app", "if not is_known(host, self._configured()):", "if False:", "unit/admin/test_app"),
    Mutant("routing.location", 'if name == b"link":', "if False:", "unit/routing/test_location"),
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
        file = mutant.file(copy)
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
