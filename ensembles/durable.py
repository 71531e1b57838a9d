"""Stores on disk: files appear whole, survive a power cut once synced, and are written by another thread."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

__all__ = ["Background", "Durable"]


_BEHIND = 2
_PAGE = mmap.PAGESIZE
_DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where the system has no such thing


class Durable(LocalStore):
    """A folder of Zarr files. Each appears whole, as `LocalStore` has it; `sync` makes sure of what was written.

    What `write` is given a thread puts on disk at once, a few files behind at most: of gigabytes, `sync` is then left
    with the last files. Where the system can, it writes them past its cache: the copy into that, and fresh pages for
    it, cost more than compression does, and push out the files that a run reads.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._fresh: set[str] = set()
        self._written: set[str] = set()
        self._under_way: deque[tuple[str, _Pages, Future[None]]] = deque()
        self._free: list[_Pages] = []

    @cached_property
    def _disk(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "polynya-disk")

    def write(self, key: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file from parts as they come; it is there when `sync` returns."""
        if len(self._under_way) > _BEHIND:
            self._await_oldest()
        pages = self._free.pop() if self._free else _Pages()
        pages.fill(parts)
        self._written.add(key)
        self._fresh.discard(key)
        self._under_way.append((key, pages, self._disk.submit(_put, self.root / key, pages)))

    def _await_oldest(self) -> None:
        key, pages, done = self._under_way.popleft()
        self._free.append(pages)
        try:
            done.result()
        except OSError as error:
            raise self._told(key, error) from error

    async def set(self, key: str, value: Buffer, byte_range: ByteRequest | None = None) -> None:
        """Write a file, and remember to sync it. Raises OSError with what to do when the disk is full."""
        self._fresh.add(key)
        try:
            await super().set(key, value)
        except OSError as error:
            raise self._told(key, error) from error

    def _told(self, key: str, error: OSError) -> OSError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        return OSError(
            error.errno,
            f"no space is left for {self.root / key}; what was written before is safe. Free some space and go on with "
            "resume=True",
        )

    def sync(self) -> None:
        """Return when all files written so far are on disk, with the folders that name them."""
        fresh, self._fresh = self._fresh, set()
        written, self._written = self._written, set()
        while self._under_way:
            self._await_oldest()
        folders = {str(folder) for key in fresh | written for folder in Path(key).parents}
        for name in [*sorted(fresh), *sorted(folders, reverse=True)]:
            try:
                number = os.open(self.root / name, os.O_RDONLY)
            except FileNotFoundError:  # deleted since
                continue
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def sweep(self) -> None:
        """Remove what a killed process left behind in the middle of writing."""
        for path in self.root.rglob("*.partial"):
            path.unlink(missing_ok=True)


class _Pages:
    """What a file is to hold, in memory that is used again and that a disk can read from: it begins with a page."""

    def __init__(self) -> None:
        self._map, self.size = mmap.mmap(-1, 2**22), 0

    def fill(self, parts: Iterable[bytes | memoryview]) -> None:
        """Take parts, one after the other."""
        self.size = 0
        for part in parts:
            end = self.size + len(part)
            if end > len(self._map):
                larger = mmap.mmap(-1, -(-2 * end // _PAGE) * _PAGE)
                larger[: self.size] = memoryview(self._map)[: self.size]
                self._map = larger
            self._map[self.size : end] = part
            self.size = end

    @property
    def whole(self) -> memoryview:
        """All of it, to the end of the last page."""
        return memoryview(self._map)[: -(-self.size // _PAGE) * _PAGE]


def _put(path: Path, pages: _Pages) -> None:
    """Put a file on disk; it appears whole, or what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        try:
            number = os.open(part, how | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            number = os.open(part, how, 0o666)  # a file system that knows no other way
        try:
            view = pages.whole
            while view:
                done = os.write(number, view)
                view = view[done:]
                if done % _PAGE and view:  # what is left does not begin with a page
                    fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) & ~_DIRECT)
            os.ftruncate(number, pages.size)
            os.fsync(number)
        finally:
            os.close(number)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Background:
    """One other thread that does what it is told, in order, while no more than `depth` tasks wait.

    An exception in a task ends the thread's work; it is raised where the next task is given, or on leaving.

    Attributes:
        waited: seconds that `do` and leaving had to wait.
    """

    def __init__(self, depth: int = 2) -> None:
        self.waited = 0.0
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="polynya-writer", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begin = time.perf_counter()
        self._tasks.put(None)
        self._thread.join()
        self.waited += time.perf_counter() - begin
        if error is None:
            self._raise()

    def do(self, task: Callable[[], None]) -> None:
        """Have it done; waits while too many tasks wait."""
        self._raise()
        begin = time.perf_counter()
        self._tasks.put(task)
        self.waited += time.perf_counter() - begin

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is not None:
                continue  # what follows a failure is not written
            try:
                task()
            except BaseException as error:  # raised again where the next task is given
                self._error = error
