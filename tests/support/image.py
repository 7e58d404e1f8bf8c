"""The container image without a container engine: the Dockerfile's own commands, run in mount namespaces.

The base image is assembled from the Debian packages that distroless' build files name for it, so this needs Debian 12,
root and `apt-get`. The published image is not fetched: what it has besides those packages, and what a registry adds,
layers and their compression, is not there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import clean_environment

ROOT = Path(__file__).parents[2]
BASE = (
    *("base-files", "ca-certificates", "netbase", "tzdata", "libc6", "libgcc-s1", "libgomp1", "libstdc++6", "libssl3"),
    *("libbz2-1.0", "libcom-err2", "libcrypt1", "libdb5.3", "libexpat1", "libffi8", "libgssapi-krb5-2", "libk5crypto3"),
    *("libkeyutils1", "libkrb5-3", "libkrb5support0", "liblzma5", "libncursesw6", "libnsl2", "libpython3.11-minimal"),
    *("libpython3.11-stdlib", "libreadline8", "libsqlite3-0", "libtinfo6", "libtirpc3", "libuuid1"),
    *("python3-distutils", "python3.11-minimal", "zlib1g"),
)
"""The packages of distroless/python3-debian12, as python3/python.bzl, cc/config.bzl and base/config.bzl of
GoogleContainerTools/distroless have them for debian12; without gcc-12-base, which has documentation alone."""
Instruction = tuple[str, str]

_ENTER = """
import ctypes, json, os, sys, warnings
root, user, folder, environment, command = json.loads(sys.argv[1])
os.chroot(root)
os.chdir(folder)
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
os.execvpe(command[0], command, environment)
"""


def instructions(text: str) -> list[list[Instruction]]:
    """The stages of a Dockerfile, each a list of instructions and their arguments."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]
    starts = [index for index, (name, _) in enumerate(found) if name == "FROM"]
    return [found[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


class Image:
    """The stages of the Dockerfile: `directory/build` has what the first one makes, `directory/root` is the image."""

    def __init__(self, directory: Path) -> None:
        self.stage, self.last = instructions((ROOT / "Dockerfile").read_text())
        self.root = directory / "root"
        self._opt, self._src, self._debs = (directory / name for name in ("opt", "src", "debs"))
        for folder in (self.root, self._opt, self._src, self._debs):
            folder.mkdir()

    def build(self) -> None:
        self._assemble_base()
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        for name, rest in self.stage:
            if name == "ENV":
                environment |= _variables(rest, environment)
            elif name == "COPY":
                self._copy(rest.split())
            elif name == "RUN" and not rest.startswith("apt-get"):  # what it installs is here
                self._run(rest, environment)
        shutil.copytree(self._opt / "venv", self.root / "opt/venv", symlinks=True)

    def _assemble_base(self) -> None:
        subprocess.run(("apt-get", "download", "-qq", *BASE), cwd=self._debs, check=True, stderr=subprocess.DEVNULL)
        for package in self._debs.iterdir():
            subprocess.run(("dpkg-deb", "-x", package, self.root), check=True)
        for name in ("doc", "man", "locale"):
            shutil.rmtree(self.root / "usr/share" / name, ignore_errors=True)
        (self.root / "usr/bin/python3").symlink_to("python3.11")
        for name in ("etc/gateway", "tmp", "proc", "dev"):
            (self.root / name).mkdir(exist_ok=True)

    def _copy(self, names: list[str]) -> None:
        *sources, target = names
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                hidden = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self._src / target, ignore=hidden)
            else:
                shutil.copy(source, self._src / target)

    def _run(self, command: str, environment: Mapping[str, str]) -> None:
        known = clean_environment()
        indexes = {name: value for name, value in known.items() if name.startswith("PIP_") or "proxy" in name}
        # What WORKDIR names is not made, since it would stay; the commands name their files relative to it.
        mounts = f"mount --bind {self._opt} /opt && cd {self._src} && {command}"
        done = subprocess.run(
            ("unshare", "--mount", "sh", "-c", mounts),
            env={**indexes, **environment, "HOME": "/root"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    @property
    def size(self) -> int:
        """Bytes of all files, each in whole blocks of 4 KiB."""
        return int(subprocess.check_output(("du", "-s", "-B1", self.root), text=True).split()[0])

    @property
    def command(self) -> list[str]:
        """The entry point with the default command."""
        return [*self._json("ENTRYPOINT"), *self._json("CMD")]

    @property
    def health_check(self) -> list[str]:
        found: list[str] = json.loads(self._value("HEALTHCHECK").partition(" CMD ")[2])
        return found

    def _json(self, name: str) -> list[str]:
        found: list[str] = json.loads(self._value(name))
        return found

    def _value(self, name: str) -> str:
        return next(rest for each, rest in self.last if each == name)

    def started(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """A command in the image as the image's user, without privileges, on a read-only file system, `folder` mounted
        at /etc/gateway and /tmp empty."""
        known = _variables(self._value("ENV"), {})
        user = int(self._value("USER").partition(":")[0])
        entered = [str(self.root), user, self._value("WORKDIR"), {**known, **environment}, list(command)]
        mounts = " && ".join(
            (
                f"mount --bind {self.root} {self.root}",
                f"mount --bind {folder} {self.root}/etc/gateway",
                f"mount --rbind /dev {self.root}/dev",
                f"mount -t proc proc {self.root}/proc",
                f"mount -t tmpfs -o mode=1777 tmpfs {self.root}/tmp",
                f"mount -o remount,bind,ro {self.root}/etc/gateway",
                f"mount -o remount,bind,ro {self.root}",
                f"exec {sys.executable} -c {shlex.quote(_ENTER)} {shlex.quote(json.dumps(entered))}",
            )
        )
        return subprocess.Popen(
            ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", mounts),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _variables(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an ENV instruction."""
    pairs = (part.partition("=") for part in shlex.split(text))
    return {name: re.sub(r"\$(\w+)", lambda found: environment[found[1]], value) for name, _, value in pairs}
