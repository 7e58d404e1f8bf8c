"""Files watched for another content: once for a change, whatever way it is made."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.server.reload import Files


async def seen(path: Path, change: Callable[[], None]) -> bool:
    """Whether a change is noticed (within ten seconds, or it is not)."""
    stop = asyncio.Event()
    watching: AsyncIterator[None] = aiter(Files([path]).changes(stop=stop))
    task = asyncio.ensure_future(anext(watching, None))
    try:
        async with asyncio.timeout(10):
            while not task.done():
                change()
                await asyncio.wait((task,), timeout=0.3)
    except TimeoutError:
        return False
    finally:
        stop.set()
        await asyncio.wait((task,))
    return True


def replaced(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(os.urandom(8).hex())
    os.replace(new, path)


def linked(path: Path) -> None:
    """As Kubernetes does it: the file is a link into a folder that is a link, which is put in the other's place."""
    folder = path.parent / os.urandom(4).hex()
    folder.mkdir()
    (folder / "gateway.yaml").write_text(os.urandom(8).hex())
    link = path.parent / "new-link"
    link.symlink_to(folder)
    os.replace(link, path.parent / "..data")
    if not path.is_symlink():
        path.unlink()
        path.symlink_to(path.parent / "..data" / "gateway.yaml")


@pytest.mark.parametrize("change", [lambda path: path.write_text(os.urandom(8).hex()), replaced, linked])
async def test_another_content_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("before")
    assert await seen(path, lambda: change(path))


async def test_a_file_that_comes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert await seen(path, lambda: path.write_text(os.urandom(8).hex()))


async def test_what_leaves_the_content_as_it_was_is_not_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "gateway.yaml", tmp_path / "other"
    path.write_text("same")
    stop = asyncio.Event()
    task = asyncio.ensure_future(anext(aiter(Files([path]).changes(stop=stop)), None))
    for _ in range(5):
        path.touch()
        other.write_text(os.urandom(8).hex())
        await asyncio.wait((task,), timeout=0.2)
    stop.set()
    await asyncio.wait((task,))
    assert task.result() is None
    path.write_text("changed afterwards")


async def test_a_log_written_beside_the_file_does_not_feed_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)  # as a gateway's log is
    path = tmp_path / "gateway.yaml"
    path.write_text("a")
    assert await seen(path, lambda: replaced(path))
    assert not logging.getLogger("watchfiles.main").isEnabledFor(logging.INFO)
