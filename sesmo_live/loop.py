"""The one thread that owns the ledger: takes messages from watchers and pipeline, writes them in group commits."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from acquisition.folder import Sighting
from db.folders import beat
from sesmo_live.claims import Claims
from sesmo_live.errors import ModelError, SesmoError
from sesmo_live.heartbeat import notify
from sesmo_live.ingest.companions import give_up
from sesmo_live.ingest.intake import Intake
from sesmo_live.pipeline import Halt, Outcome
from sesmo_live.vigil import Vigil

GROUP_COMMIT = 64
"""At most so many messages are taken at a time."""

TRANSACTION_S = 0.5
"""Seconds after which a transaction is ended, though more is to be written: others wait for it."""

ASK_S = 2.0
"""Seconds between two looks for images that another process asked to be tried again."""

BEAT_S = 10.0
"""Seconds between two signs of life in the database."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, summed over its own folders, which may be none; `pending` images are seen but not done.

    `trouble` says in words why nothing goes on now, empty if all is well.
    """

    images: int = 0
    scored: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    unchanged: int = 0
    pending: int = 0
    cells: int = 0
    trouble: str = ""


class Loop:
    """Hands messages to the intakes, and looks after time: attempts that are due, signs of life, stalls."""

    def __init__(
        self,
        engine: Engine,
        intakes: list[Intake],
        inbox: "Queue[Any]",
        vigil: Vigil,
        claims: Claims,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._engine = engine
        self._intakes = intakes
        self._by_recipe = {id(intake.plan.recipe): intake for intake in intakes}
        self._inbox = inbox
        self._vigil = vigil
        self._claims = claims
        self._once = all(intake.plan.once for intake in intakes)
        self._on_progress = on_progress
        self._next_report = self._next_ask = self._next_beat = 0.0
        self._looked: set[int] = set()

    @property
    def idle(self) -> bool:
        """Say whether every folder was looked at to its end and all that was found is done."""
        return self._looked_everywhere and self._inbox.empty() and not any(intake.busy for intake in self._intakes)

    @property
    def _looked_everywhere(self) -> bool:
        return len(self._looked) == len(self._intakes)

    def until(self, finished: Callable[[], bool]) -> None:
        """Handle messages until `finished`; look at it at least five times a second."""
        while not finished():
            self._handle(self._take(0.2))

    def drain(self, *, complete: bool) -> None:
        """Write what came back after the pipeline was closed; if all is done, give up what a single look misses."""
        while messages := self._take(0.0):
            self._handle([message for message in messages if isinstance(message, Outcome | Halt)])
        with self._engine.begin() as connection:
            for intake in self._intakes if complete else ():
                give_up(connection, intake.files, intake.judge)
        self._report(last=True)

    def _take(self, timeout_s: float) -> list[Any]:
        messages: list[Any] = []
        try:
            messages.append(self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait())
            while len(messages) < GROUP_COMMIT:
                messages.append(self._inbox.get_nowait())
        except Empty:
            pass
        return messages

    def _handle(self, messages: list[Any]) -> None:
        """Write messages and what is due, in transactions that keep others out for a moment; then stop if told to."""
        now, todo = time.monotonic(), deque(messages)
        timely = now >= min(self._next_ask, self._next_beat) or any(intake.has_due for intake in self._intakes)
        while todo or timely:
            with self._engine.begin() as connection:
                until = time.monotonic() + TRANSACTION_S
                while todo and time.monotonic() < until:
                    self._write(connection, todo.popleft())
                for intake in self._intakes:
                    self._vigil.look(connection, intake, now)
                if not todo:
                    self._look_after(connection, now)
                    timely = False
            for intake in self._intakes:
                intake.judge.committed()
                intake.files.committed()
        for message in messages:
            if isinstance(message, Halt):
                _halt(message.error)
        self._report()

    def _look_after(self, connection: Connection, now: float) -> None:
        """Do what the time asks for: attempts that are due, wishes from outside, signs of life, stalls."""
        ask, beats = now >= self._next_ask, now >= self._next_beat
        if ask:
            self._claims.look(connection)
        if beats:
            self._claims.beat(connection)
        for intake in self._intakes:
            if ask:
                intake.retry_asked(connection)
            intake.retry_due(connection)
            if beats:
                beat(connection, self._claims.daemon, intake.plan.root, intake.mode, intake.trouble, intake.scanned_at)
        if not self._once and self._looked_everywhere and not any(intake.trouble for intake in self._intakes):
            self._vigil.check_stalls(connection, now)
        if beats:
            notify("WATCHDOG=1")
        self._next_ask = now + ASK_S if ask else self._next_ask
        self._next_beat = now + BEAT_S if beats else self._next_beat

    def _write(self, connection: Connection, message: Any) -> None:
        """Hand a message to its intake; a surprise in one file fails that file, and does not end the night."""
        if isinstance(message, Halt):
            return
        intake: Intake
        payload: Any
        if isinstance(message, Outcome):
            intake, payload = self._by_recipe[id(message.job.recipe)], message
        else:
            intake, payload = message
        if payload is None:
            self._looked.add(id(intake))
            return
        if isinstance(payload, Sighting):
            intake.see(connection, payload)
            return
        try:
            with connection.begin_nested():
                intake.take(connection, payload)
        except (SQLAlchemyError, SesmoError):
            raise
        except Exception as error:  # noqa: BLE001 — the border of one file
            intake.surprised(connection, payload, error)

    def _report(self, *, last: bool = False) -> None:
        if self._on_progress and (last or time.monotonic() >= self._next_report):
            began = time.monotonic()
            self._on_progress(self.progress())
            # Counting takes longer the larger the plate is; it may take a twentieth of the time at most.
            self._next_report = time.monotonic() + max(0.25, 20 * (time.monotonic() - began))

    def progress(self, trouble: str = "") -> Progress:
        """Return how far the run has come."""
        return progress_of(self._intakes, trouble)


def progress_of(intakes: list[Intake], trouble: str = "") -> Progress:
    """Return how far a run over these folders has come."""
    counts = [intake.files.summary() for intake in intakes]
    names = counts[0] if counts else {}
    totals = {name: sum(count[name] for count in counts) for name in names}
    trouble = trouble or "; ".join(filter(None, (intake.trouble for intake in intakes)))
    return Progress(**totals, cells=sum(intake.judge.cells for intake in intakes), trouble=trouble)


def _halt(error: Exception) -> None:
    if isinstance(error, SesmoError):
        raise error
    text = f"the run cannot go on: {type(error).__name__}: {error}; images not scored stay pending"
    raise ModelError(text) from error
