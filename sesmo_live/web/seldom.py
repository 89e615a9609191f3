"""Costly questions are asked seldom: once for a state of the database, and never so often that they cost much."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

REST = 20.0
"""An answer that took a second is kept for so many seconds at least: five per cent of a core for those who watch."""
MOST_KEPT = 16


@dataclass(slots=True)
class _Kept:
    turn: threading.Lock = field(default_factory=threading.Lock)
    version: int = -1
    made: bool = False
    value: Any = None
    until: float = 0.0


class Seldom:
    """Keeps the last answers to costly questions, and says of each whether the database has changed since."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, key: Hashable, version: int, make: Callable[[], Any]) -> tuple[Any, float]:
        """Return the answer to a question of that key, and after how many seconds a newer one can be had, 0 for none.

        `version` is the state of the database. One asks; others with the same question are told the answer before, or
        wait where there is none yet. What `make` raises is raised, and not kept.
        """
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        if not kept.turn.acquire(blocking=not kept.made):
            return kept.value, 1.0
        try:
            now = time.monotonic()
            if kept.made and kept.version == version:
                return kept.value, 0.0
            if kept.made and now < kept.until:
                return kept.value, kept.until - now
            kept.value, kept.version = make(), version
            ended = time.monotonic()
            kept.made, kept.until = True, ended + REST * (ended - now)
            return kept.value, 0.0
        finally:
            kept.turn.release()
