"""Private memory of a process, without mapped files: what the size of a dataset on disk does not explain (Linux)."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """Bytes that are private to this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this measurement needs Linux.")


class Peak:
    """The most private memory while a block runs, sampled every two milliseconds.

    >>> with Peak() as peak:
    ...     block = bytearray(8_000_000)
    >>> peak.above >= 8_000_000
    True

    Attributes:
        greatest: bytes.
        above: bytes above what there was when the block began.
    """

    def __init__(self) -> None:
        self.greatest = self._before = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def above(self) -> int:
        return self.greatest - self._before

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._look()

    def _look(self) -> None:
        self.greatest = max(self.greatest, anonymous_bytes())
