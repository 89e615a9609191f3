"""When a file that cannot be read is tried again: incomplete ones a few times, those that end in zeros after a rest."""

import heapq
import time
from pathlib import Path

from sqlalchemy import Connection

from acquisition.manifest import check_manifest
from acquisition.tree import SeenFile
from db.ledger import LedgerRow
from sesmo_live.errors import ImageError, IncompleteImageError, SesmoError, ZeroTailError
from sesmo_live.ingest.placing import WatchPlan
from sesmo_live.ingest.reach import is_there
from sesmo_live.ingest.rows import FileState, change

VOUCHED_AT_ONCE = 200
"""Files that are looked up in the manifests after each scan."""


class Patience:
    """The files of one watched folder that wait for another attempt; all times are the monotonic clock's."""

    def __init__(self, plan: WatchPlan) -> None:
        self._watching = plan.watching
        self._once = plan.once
        self._due: list[tuple[float, Path]] = []
        self._unvouched: dict[Path, None] = {}

    @property
    def has_due(self) -> bool:
        """Say whether a file's waiting time is over."""
        return bool(self._due) and self._due[0][0] <= time.monotonic()

    def take_due(self) -> list[Path]:
        """Return the files whose waiting time is over; they wait no longer."""
        found = []
        while self.has_due:
            found.append(heapq.heappop(self._due)[1])
        return found

    def take_vouched(self, root: Path) -> list[Path]:
        """Return files that ended in zeros and for which a manifest speaks by now; of many, some at a time."""
        found = []
        for path in list(self._unvouched)[:VOUCHED_AT_ONCE]:
            del self._unvouched[path]  # and at the end again, so that all get their turn
            try:
                vouched = check_manifest(root, path, hashing=False)
            except (ImageError, OSError):
                vouched = False
            if vouched:
                found.append(path)
            elif is_there(path):
                self._unvouched[path] = None
        return found

    def waits(
        self,
        connection: Connection,
        state: FileState,
        rows: list[LedgerRow],
        seen: SeenFile,
        error: SesmoError | OSError,
    ) -> bool:
        """Put a file off if its error may pass, and say so in its rows; False when there is no more to wait for."""
        if isinstance(error, ZeroTailError):
            self._unvouched[state.path] = None
            return not self.was_held(state, seen) and self._hold(connection, state, rows, seen, error)
        if not isinstance(error, IncompleteImageError | OSError):
            return False
        if not state.waits:
            if self._once or state.attempts >= self._watching.retries:
                return False
            wait_s = self._watching.retry_after_s * 2**state.attempts
            state.attempts, state.waits = state.attempts + 1, True
            heapq.heappush(self._due, (time.monotonic() + wait_s, state.path))
        change(connection, rows, state="pending", reason=str(error), attempts=state.attempts)
        return True

    def _hold(
        self, connection: Connection, state: FileState, rows: list[LedgerRow], seen: SeenFile, error: ZeroTailError
    ) -> bool:
        """Let a file that ends in zeros rest, as it may still be filled."""
        hold_s = self._watching.zero_tail_hold_s
        if state.held is None or state.held[:2] != (seen.size, seen.mtime_ns):
            state.held = (seen.size, seen.mtime_ns, time.monotonic())
        change(connection, rows, state="pending", reason=f"held for {hold_s:g} s: {error}")
        heapq.heappush(self._due, (state.held[2] + hold_s, state.path))
        return True

    def was_held(self, state: FileState, seen: SeenFile) -> bool:
        """Say whether a file that ends in zeros has rested long enough; of a single look no rest is expected."""
        hold_s = self._watching.zero_tail_hold_s
        if self._once or hold_s == 0:
            return True
        if state.held is None or state.held[:2] != (seen.size, seen.mtime_ns):
            return False
        return time.monotonic() - state.held[2] >= hold_s
