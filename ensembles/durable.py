"""Stores on disk: files appear whole, survive a power cut once synced, and are written by another thread."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

__all__ = ["Background", "Durable"]


class Durable(LocalStore):
    """A folder of Zarr files. Each appears whole, as `LocalStore` has it; `sync` makes sure of what was written."""

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._fresh: set[str] = set()

    def write(self, key: str, parts: Sequence[bytes]) -> None:
        """Write a file from parts, as `set` does, without joining them."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with part.open("wb", buffering=0) as file:
                for piece in parts:
                    view = memoryview(piece)
                    while view:
                        view = view[file.write(view) or 0 :]
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._told(key, error) from error
        self._fresh.add(key)

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
        folders = {(self.root / key).parent for key in fresh}
        for path in [*(self.root / key for key in sorted(fresh)), *sorted(folders)]:
            if not path.exists():  # deleted since
                continue
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def sweep(self) -> None:
        """Remove what a killed process left behind in the middle of writing."""
        for path in self.root.rglob("*.partial"):
            path.unlink(missing_ok=True)


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
