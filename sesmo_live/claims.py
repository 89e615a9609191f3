"""Which folders this daemon works on, where several write one database: each folder has one daemon at a time."""

import logging
import platform
import threading
import time
from collections.abc import Sequence

import psutil
from sqlalchemy import Connection, Engine

from acquisition.shares import is_network
from db import folders
from db.folders import FolderRow
from db.schema import SHARED
from sesmo_live.errors import StoreError, StorePausedError
from sesmo_live.heartbeat import notify
from sesmo_live.ingest.placing import WatchPlan

log = logging.getLogger(__name__)

CLAIM_WAIT_S = 15.0
"""Seconds for which a folder of this daemon's own is waited for: one that was killed may not be gone yet."""

LOST_WAIT_S = 90.0
"""The same where this process had it: a server drops a cut connection, and the locks with it, after half a minute."""


class Claims:
    """Takes folders for this process; a shared one that another daemon has is waited for, and taken when it is free.

    A claim lives and dies with the connection that writes: whoever can still commit still has it.
    """

    def __init__(self, daemon: str, plans: Sequence[WatchPlan], stop: threading.Event) -> None:
        self.daemon = daemon
        self.plans = plans
        self.freed = False
        """Whether a folder that was waited for can be worked on now."""
        self._stop = stop
        self._begun = False
        self._waiting: dict[str, str] = {}  # folder: who has it

    def take(self, engine: Engine) -> list[WatchPlan]:
        """Return the folders to work on now.

        Raises StoreError when one that is not shared belongs to another daemon, StorePausedError if it was ours before.
        """
        refusal, wait_s = (StorePausedError, LOST_WAIT_S) if self._begun else (StoreError, CLAIM_WAIT_S)
        until = time.monotonic() + wait_s
        while True:
            with engine.begin() as connection:
                mine = [plan for plan in self.plans if folders.claim(connection, plan.source, plan.root)]
                others = [plan for plan in self.plans if plan not in mine]
                self._waiting = {str(plan.root): self._holder(connection, plan) for plan in others}
                refused = next((plan for plan in others if plan.once or not plan.options.shared), None)
                if refused is None:
                    self._begin(connection, mine)
                    self._begun = True
                    return mine
            if self._stop.is_set() or time.monotonic() > until:
                raise refusal(
                    f"{refused.root} is worked on by {self._waiting[str(refused.root)]}; stop that first, or give this "
                    "daemon a name of its own in [service]"
                )
            notify("WATCHDOG=1")
            self._stop.wait(0.5)

    def _holder(self, connection: Connection, plan: WatchPlan) -> str:
        return folders.holder(connection, self.daemon, plan.root)

    def _begin(self, connection: Connection, mine: list[WatchPlan]) -> None:
        self.freed = False
        known = folders.watched_folders(connection)
        for plan in self.plans:
            for row in known:
                self._compare(plan, row)
        # What is shared stays so: another computer's folder of that path, which is not shared, holds other images.
        earlier = {"": (self.daemon, SHARED), SHARED: ("", self.daemon)}
        for plan in mine:
            for before in earlier.get(plan.source, ("",)):
                folders.take_over(connection, plan.source, before, plan.root)
        folders.start_watching(connection, self.daemon, {plan.root: plan.source for plan in self.plans})
        for path, other in self._waiting.items():
            log.warning("%s is worked on by %s; it is taken over when that ends", path, other)
        self.beat(connection)

    def _compare(self, plan: WatchPlan, row: FolderRow) -> None:
        """Raise StoreError where a daemon beside this one watches the same files under another source."""
        if row.daemon == self.daemon or row.source == plan.source or not folders.overlap(row, plan.root):
            return
        if not folders.is_heard_of(row):  # it ended without a word; its number may be another program's by now
            return
        if row.host == platform.node() and psutil.pid_exists(row.pid):
            raise StoreError(
                f"{plan.root} is watched on this computer by daemon {row.daemon}, too; set shared = true for it in both"
            )
        if is_network(plan.root):
            log.warning("%s: daemon %s watches a folder of that path, too; if it is the same one, set shared = true "
                        "in both, else each image is scored twice", plan.root, row.daemon)  # fmt: skip

    def beat(self, connection: Connection) -> None:
        """Give a sign of life of the folders that are waited for."""
        for plan in self.plans:
            if (other := self._waiting.get(str(plan.root))) is not None:
                folders.beat(connection, self.daemon, plan.root, f"{folders.WAITED_FOR}: {other} works on it", "", None)

    def look(self, connection: Connection) -> None:
        """Look whether a folder that is waited for has become free."""
        for plan in self.plans:
            if str(plan.root) in self._waiting and folders.claim(connection, plan.source, plan.root):
                self.freed = True
