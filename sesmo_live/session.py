"""One stretch of work: from what the ledger knows, until it is done, stopped, or the database can take no more."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from queue import Queue
from typing import Any

from sqlalchemy import Engine

from acquisition.folder import Sighting, scan, watch
from acquisition.shares import is_network
from db.engine import kept_open, store_answers, store_errors, utc_now
from db.folders import stop_watching
from db.sqlite import display_name
from sesmo_live.claims import Claims
from sesmo_live.config import Settings
from sesmo_live.errors import StorePausedError
from sesmo_live.heartbeat import notify
from sesmo_live.ingest.intake import Intake
from sesmo_live.ingest.placing import WatchPlan
from sesmo_live.loop import Loop, Progress, progress_of
from sesmo_live.pipeline import AnyPipeline, Halt, Outcome
from sesmo_live.vigil import Vigil

log = logging.getLogger(__name__)

SIGHTING_PIECE = 500
"""At most so many files are entered in one transaction."""

STORE_RETRY_S = 2.0
"""Seconds between two attempts to write again to a database that could take nothing."""


OpenPipeline = Callable[[Callable[[Outcome | Halt], None]], AnyPipeline]
"""Opens a pipeline that delivers its outcomes to the function that it is given."""

MOST_WAIT_S = 60.0
"""The same when a database takes little and soon refuses again, as with a quota."""


class Session:
    """Watchers, pipeline and loop over the same plans, made anew each time that work is begun again."""

    def __init__(
        self,
        settings: Settings,
        plans: list[WatchPlan],
        engine: Engine,
        vigil: Vigil,
        stop: threading.Event,
        on_progress: Callable[[Progress], None] | None,
        open_pipeline: OpenPipeline,
    ) -> None:
        self.intakes: list[Intake] = []
        self._settings = settings
        self._plans = plans
        self._engine = engine
        self._vigil = vigil
        self._stop = stop
        self._on_progress = on_progress
        self._open_pipeline = open_pipeline
        self._once = plans[0].once
        self._claims = Claims(settings.service.daemon, plans, stop)
        self._paused: tuple[str, datetime] | None = None
        self._wait_s, self._resumed_at = STORE_RETRY_S, float("-inf")

    def work(self) -> None:
        """Work until all is done, `stop` is set, or a folder becomes free that another daemon had.

        Raises StorePausedError when the database can take nothing now.
        """
        inbox: Queue[Any] = Queue()
        url = self._settings.database.url
        with ExitStack() as stack:
            pipeline = self._open_pipeline(inbox.put)
            stack.callback(pipeline.close)
            ended = threading.Event()  # ends the watchers, also when the loop itself fails
            stack.callback(ended.set)
            with store_errors(url):
                self._open_intakes(pipeline, inbox.put)
                loop = Loop(self._engine, self.intakes, inbox, self._vigil, self._claims, self._on_progress)
                for intake in self.intakes:
                    self._start_watcher(intake, ended, inbox)
                with kept_open(url):
                    loop.until(lambda: self._stop.is_set() or self._claims.freed or (self._once and loop.idle))
            complete = self._once and loop.idle
            ended.set()
            pipeline.close()
            with store_errors(url):
                loop.drain(complete=complete)
                with self._engine.begin() as connection:
                    stop_watching(connection, self._claims.daemon, [plan.root for plan in self._plans])

    @property
    def goes_on(self) -> bool:
        """Say whether work ended only to begin again with another folder."""
        return self._claims.freed and not self._stop.is_set()

    def wait_for_store(self, error: StorePausedError) -> None:
        """Wait until the database can take scores again; raise `error` if told to stop before."""
        again_so_soon = time.monotonic() - self._resumed_at < 30
        self._wait_s = min(2 * self._wait_s, MOST_WAIT_S) if again_so_soon else STORE_RETRY_S
        log.error("paused: %s; it is tried every %g s", error, self._wait_s)
        self._paused = (str(error), utc_now())
        self._vigil.store_paused(display_name(self._settings.database.url), str(error))
        answers = False
        while not answers:
            notify("WATCHDOG=1")
            if self._on_progress:
                self._on_progress(progress_of(self.intakes, f"paused: {error}"))
            if self._stop.wait(self._wait_s):
                raise error
            answers = store_answers(self._settings.database.url)
        self._resumed_at = time.monotonic()
        log.warning("the database can be written again; the work goes on")

    def _open_intakes(self, pipeline: AnyPipeline, post: Callable[[Any], None]) -> None:
        """Make an intake for every folder that is ours now, from what the ledger knows of it."""
        before = {intake.plan.root: intake for intake in self.intakes}
        intakes = [Intake(plan, pipeline, post) for plan in self._claims.take(self._engine)]
        with self._engine.begin() as connection:
            for intake in intakes:
                intake.load(connection, before.get(intake.plan.root))
            if not self._once:
                self._vigil.remember(connection, [one.plan for one in intakes if one.plan.root not in before])
            if self._paused:
                self._vigil.store_back(connection, display_name(self._settings.database.url), *self._paused)
        self._paused = None
        self.intakes = intakes

    def _start_watcher(self, intake: Intake, ended: threading.Event, inbox: "Queue[Any]") -> None:
        """Look at one folder, on a thread of its own; what it sees goes to the inbox in pieces, also its failure."""

        def look() -> None:
            try:
                for number, sighting in enumerate(self._sightings(intake.plan, ended)):
                    # A share that is not mounted yet looks empty; what fails then is taken up when it is there.
                    missing = intake.missing(sighting.new) if number == 0 and not sighting.trouble else []
                    for piece in _pieces(sighting, missing):
                        inbox.put((intake, piece))
                    if number == 0:
                        inbox.put((intake, None))
            except Exception as error:  # noqa: BLE001 — a worker's top: without its watcher the run must stop loudly
                inbox.put(Halt(error))

        threading.Thread(target=look, name=f"watch {intake.plan.root.name}", daemon=True).start()

    def _sightings(self, plan: WatchPlan, ended: threading.Event) -> Iterator[Sighting]:
        """Yield what is seen of a folder: once, or until `ended`."""
        if plan.once:
            files = scan(plan.root)
            yield Sighting(new=files, settled=files, gone=[])
            return
        watching, network = self._settings.watching, is_network(plan.root)
        yield from watch(
            plan.root,
            interval_s=watching.share_scan_interval_s if network else watching.scan_interval_s,
            settle_s=watching.share_settle_s if network else watching.settle_s,
            stop=ended,
            arrival=plan.options.arrival,
            events=watching.events,
            network=network,
        )


def _pieces(sighting: Sighting, missing: list[Path]) -> Iterator[Sighting]:
    """Yield a sighting in pieces, so that a large folder does not hold the database in one long transaction."""
    none = replace(sighting, new=[], settled=[], gone=[], growing=[])
    for start in range(0, len(sighting.new), SIGHTING_PIECE):
        yield replace(none, new=sighting.new[start : start + SIGHTING_PIECE])
    for start in range(0, len(sighting.settled), SIGHTING_PIECE):
        yield replace(none, settled=sighting.settled[start : start + SIGHTING_PIECE])
    yield replace(none, gone=[*sighting.gone, *missing], growing=sighting.growing)
