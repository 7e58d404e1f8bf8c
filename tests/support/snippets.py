"""The fenced blocks of a documentation page, and a runner that does what a reader would do with them.

A reader has an empty folder and a terminal. `Reader.run` takes a section's blocks in their order: the first line of a
block names the file that it is (`# gateway.yaml`), a `console` block is a list of commands with the output that they
give. A block that the runner can't do anything with is an error, so no snippet of a page stays untried.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from tests.support.processes import LISTENING, Child, clean_environment

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\b")
SERVERS = (
    *("gateway serve", "python -m gateway.demo.shop", "python -m gateway.demo.issuer"),
    *("python -m httpbin.core", "python -m users"),
)
"""Commands that run on, in a terminal of their own."""
COMMAND_SECONDS = 60
CHANGE_SECONDS = 10.0
"""How long a command is repeated until its output is the page's: what it shows may come a moment later."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    """Of the fence that opens it."""

    @property
    def file(self) -> str | None:
        """The name in its first line, `# gateway.yaml`."""
        found = FILE.match(self.text)
        return found[1] if found else None


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    blocks: list[Block] = field(default_factory=list)


def blocks(text: str, first_line: int = 1) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        yield Block(found[1], found[2], first_line + text.count("\n", 0, found.start()))


def sections(page: Path) -> list[Section]:
    """The parts of a page by its headings of the second level; what stands before the first has no title."""
    text = page.read_text(encoding="utf-8")
    starts = [0, *(found.start() for found in re.finditer(r"^## ", text, re.MULTILINE)), len(text)]
    found = []
    for start, end in pairwise(starts):
        part = text[start:end]
        title = part.removeprefix("## ").partition("\n")[0] if start else ""
        found.append(Section(title, part, list(blocks(part, 1 + text.count("\n", 0, start)))))
    return found


@dataclass(frozen=True)
class Step:
    """A command of a console block and the lines that it prints."""

    command: str
    output: list[str]


def steps(text: str) -> list[Step]:
    """The steps of a console block; a command goes on in the lines after a backslash."""
    found: list[Step] = []
    continues = False
    for line in text.splitlines():
        if continues:
            found[-1] = Step(f"{found[-1].command}\n{line}", [])
        elif line.startswith("$ "):
            found.append(Step(line[2:], []))
        else:
            assert found, f"output without a command: {line}"
            found[-1].output.append(line)
        continues = line.endswith("\\") and not found[-1].output
    return found


def shows(actual: str, expected: list[str]) -> bool:
    """Whether the lines are all there, in this order; `…` stands for anything. Case does not count: HTTP/1.1 fields
    have none."""
    lines = iter(line.strip() for line in actual.splitlines())
    return all(any(_pattern(each).fullmatch(line) for line in lines) for each in expected if each.strip())


def _pattern(line: str) -> re.Pattern[str]:
    text = line.partition("   # ")[0].strip()
    return re.compile(".*".join(map(re.escape, text.split("…"))), re.IGNORECASE)


def _wait_for(port: int) -> None:
    until = time.monotonic() + COMMAND_SECONDS
    while time.monotonic() < until:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


class Reader:
    """An empty folder, and a shell in it whose commands are those of this environment.

    `ports` replaces the ports of a page by free ones. `gateway serve …` runs on until the reader leaves, and again
    replaces what ran before.
    """

    def __init__(self, folder: Path, ports: Mapping[str, int], environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._ports = ports
        path = f"{Path(sys.executable).parent}:{clean_environment()['PATH']}"
        self._environment = {"PATH": path, "PYTHONPATH": f"{folder}", **(environment or {})}
        self._serving: dict[str, Child] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, section: Section) -> None:
        for block in section.blocks:
            if block.language == "console":
                for step in steps(block.text):
                    self._do(step, block)
            elif block.file is not None:
                self.write(block)
            else:
                raise AssertionError(f"line {block.line}: a block of {block.language or 'no language'} names no file")

    def write(self, block: Block) -> None:
        assert block.file is not None
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._with_ports(block.text))

    def _with_ports(self, text: str) -> str:
        return re.sub(r"(?<=:|\s)\d{4,5}\b", lambda found: str(self._ports.get(found[0], found[0])), text)

    def _do(self, step: Step, block: Block) -> None:
        command = self._with_ports(step.command)
        name, _, value = command.removeprefix("export ").partition("=")
        if command.startswith("export "):
            self._environment[name] = value
        elif command.startswith(SERVERS):
            self._serve(command)
        else:
            self._compare(command, step, block)

    def _serve(self, command: str) -> None:
        """In place of what the same program served before, which a reader would stop."""
        program = next(each for each in SERVERS if command.startswith(each))
        if (before := self._serving.pop(program, None)) is not None:
            before.end()
        # `exec`: what ends is the gateway, and not a shell around it.
        self._serving[program] = child = Child(
            ["bash", "-c", f"exec {command}"],
            output=self.folder / f"{program.split()[-1]}.out",
            cwd=self.folder,
            environment=clean_environment(self._environment),
        )
        self._stack.callback(child.end)
        if program == SERVERS[0]:
            child.said(LISTENING)
        else:
            port = int(command.partition("--port ")[2].split()[0])
            _wait_for(port)

    def _compare(self, command: str, step: Step, block: Block) -> None:
        expected = [self._with_ports(line) for line in step.output]
        until = time.monotonic() + CHANGE_SECONDS
        while True:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=clean_environment(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            if shows(done.stdout, expected) and (expected or done.returncode == 0):
                return
            if time.monotonic() > until or "curl" in command:  # a request that is repeated meets another cache
                log = "\n".join(child.errors[-2000:] for child in self._serving.values())
                wanted = "\n".join(expected)
                raise AssertionError(
                    f"line {block.line}: $ {command}\nprints\n{done.stdout}\nand the page has\n{wanted}\n\n{log}"
                )
            time.sleep(0.2)
