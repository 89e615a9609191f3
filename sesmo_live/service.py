"""The one place where the parts are wired: settings in, a running service out."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from acquisition.folder import Sighting, scan, watch
from acquisition.layouts import open_layout
from acquisition.ndtiff import is_ndtiff, ndtiff_pixels
from acquisition.tiff import read_pixels
from db import plates
from db.engine import ingest_lock, open_engine, store_errors, upgrade
from db.scores import ensure_model
from models.passport import find_model, read_passport, read_weights
from models.prepare import prepare_field
from sesmo_live.config import Settings, Watch
from sesmo_live.errors import IncompleteImageError, ModelError, SesmoError, UsageError
from sesmo_live.ingest.intake import Intake
from sesmo_live.ingest.placing import WatchPlan, read_barcodes, sight
from sesmo_live.pipeline import Halt, Outcome, Pipeline, Prepared, Recipe
from sesmo_live.platemap import read_platemap
from sesmo_live.records import FieldImage, ImageFile, ModelPassport

log = logging.getLogger(__name__)

GROUP_COMMIT = 64
"""At most so many messages are written in one transaction."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, summed over its watched folders; `pending` images are seen but not done."""

    images: int
    scored: int
    refused: int
    failed: int
    skipped: int
    unchanged: int
    pending: int
    cells: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did."""

    progress: Progress
    seconds: float
    failures: tuple[tuple[str, str], ...]


def score_folder(
    settings: Settings,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Score everything that lies in the watched folders now, once; what was scored before stays as it is.

    Setting `stop` ends it early: images under way are finished, the others stay pending.
    """
    return _serve(settings, stop or threading.Event(), once=True, on_progress=on_progress)


def run(settings: Settings, stop: threading.Event, on_progress: Callable[[Progress], None] | None = None) -> Summary:
    """Watch the folders and score what lands until `stop` is set; images under way are finished first."""
    return _serve(settings, stop, once=False, on_progress=on_progress)


def _serve(
    settings: Settings, stop: threading.Event, *, once: bool, on_progress: Callable[[Progress], None] | None
) -> Summary:
    if not settings.watch:
        raise UsageError("there is no folder to watch; give --watch FOLDER, or a [[watch]] block in the configuration")
    began = time.monotonic()
    url = settings.database.url
    upgrade(url)
    inbox: Queue[Any] = Queue()
    with ExitStack() as stack:
        stack.enter_context(ingest_lock(url))
        engine = open_engine(url, write=True)
        stack.callback(engine.dispose)
        pipeline = Pipeline(
            inbox.put,
            readers=settings.scoring.readers,
            batch_cells=settings.scoring.batch_cells,
            max_wait_s=settings.scoring.max_wait_s,
        )
        stack.callback(pipeline.close)
        with store_errors(url):
            intakes = _open_intakes(settings, engine, pipeline, inbox, once=once)
            loop = _Loop(engine, intakes, inbox, on_progress)
            if once:
                loop.handle([(intake, _everything(intake.plan.root)) for intake in intakes])
                loop.until(lambda: stop.is_set() or not any(intake.busy for intake in intakes))
            else:
                done = threading.Event()  # ends the watchers also when the loop itself fails
                stack.callback(done.set)
                for intake in intakes:
                    _start_watcher(intake, settings, done, inbox)
                loop.until(stop.is_set)
                done.set()
        pipeline.close()
        with store_errors(url):
            loop.drain()
    failures = tuple(failure for intake in intakes for failure in intake.failures())
    return Summary(loop.progress(), time.monotonic() - began, failures)


def _everything(root: Path) -> Sighting:
    files = scan(root)
    return Sighting(new=files, settled=files, gone=[])


def _start_watcher(intake: Intake, settings: Settings, stop: threading.Event, inbox: "Queue[Any]") -> None:
    """Watch one folder on a thread of its own; what it sees, and its end if it fails, goes to the inbox."""
    options, watching = intake.plan.options, settings.watching

    def look() -> None:
        sightings = watch(
            intake.plan.root,
            interval_s=watching.scan_interval_s,
            settle_s=watching.settle_s,
            stop=stop,
            arrival=options.arrival,
            events=watching.events,
        )
        try:
            for sighting in sightings:
                inbox.put((intake, sighting))
        except Exception as error:  # noqa: BLE001 — a worker's top: without its watcher the run must stop loudly
            inbox.put(Halt(error))

    threading.Thread(target=look, name=f"watch {intake.plan.root.name}", daemon=True).start()


class _Loop:
    """The one thread that owns the ledger: takes messages, writes them in group commits."""

    def __init__(
        self,
        engine: Engine,
        intakes: list[Intake],
        inbox: "Queue[Any]",
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._engine = engine
        self._intakes = intakes
        self._by_recipe = {id(intake.plan.recipe): intake for intake in intakes}
        self._inbox = inbox
        self._on_progress = on_progress
        self._next_report = 0.0

    def until(self, finished: Callable[[], bool]) -> None:
        """Handle messages until `finished`; look at it at least five times a second."""
        while not finished():
            messages = self._take(0.2)
            if messages:
                self.handle(messages)
            for intake in self._intakes:
                intake.retry_due()

    def drain(self) -> None:
        """Write what has come back after the pipeline was closed."""
        while messages := self._take(0.0):
            self.handle([m for m in messages if not (isinstance(m, tuple) and isinstance(m[1], Sighting))])

    def _take(self, timeout_s: float) -> list[Any]:
        messages: list[Any] = []
        try:
            messages.append(self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait())
            while len(messages) < GROUP_COMMIT:
                messages.append(self._inbox.get_nowait())
        except Empty:
            pass
        return messages

    def handle(self, messages: list[Any]) -> None:
        """Write messages in one transaction."""
        with self._engine.begin() as connection:
            for message in messages:
                self._handle(connection, message)
        if self._on_progress and time.monotonic() >= self._next_report:
            began = time.monotonic()
            self._on_progress(self.progress())
            # Counting takes longer the larger the plate is; it may take a twentieth of the time at most.
            self._next_report = time.monotonic() + max(0.25, 20 * (time.monotonic() - began))

    def _handle(self, connection: Connection, message: Any) -> None:
        if isinstance(message, Halt):
            if isinstance(message.error, SesmoError):
                raise message.error
            text = (
                f"the run cannot go on: {type(message.error).__name__}: {message.error}; images not scored stay pending"
            )
            raise ModelError(text) from message.error
        if isinstance(message, Outcome):
            self._by_recipe[id(message.job.recipe)].finish(connection, message)
            return
        intake, payload = message
        if isinstance(payload, Sighting):
            intake.see(connection, payload)
        else:
            intake.inspected(connection, payload)

    def progress(self) -> Progress:
        """Return how far the run has come."""
        counts = [intake.summary() for intake in self._intakes]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        return Progress(**totals, cells=sum(intake.cells for intake in self._intakes))


def _open_intakes(
    settings: Settings, engine: Engine, pipeline: Pipeline, inbox: "Queue[Any]", *, once: bool
) -> list[Intake]:
    """Wire every watched folder; models are shared between folders that name the same one."""
    scorers: dict[Path, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {}
    passports: dict[Path, ModelPassport] = {}
    intakes = []
    with engine.begin() as connection:
        for options in settings.watch:
            root = options.folder.expanduser().resolve()
            if not root.is_dir():
                raise UsageError(f"there is no folder {root} to watch; create it or correct the path")
            folder = find_model(options.model or settings.scoring.model or None)
            if folder not in scorers:
                passports[folder] = read_passport(folder)
                read_weights(folder, passports[folder])  # a model that cannot be trusted ends the run here
                scorers[folder] = lazy_scorer(folder)
                if passports[folder].demonstration:
                    log.warning("model %s: %s", passports[folder].model_id, passports[folder].demonstration)
                if not once:
                    # A night's run learns at its start, not at the first image, whether the network works.
                    scorers[folder](np.zeros((1, passports[folder].input_px, passports[folder].input_px), np.uint8))
            plan = _plan(root, options, passports[folder], scorers[folder], ensure_model(connection, passports[folder]))
            plan = replace(plan, retries=0 if once else settings.watching.retries)
            intake = Intake(plan, pipeline, inbox.put)
            intake.load(connection)
            intakes.append(intake)
            if options.platemap:
                _import_map(connection, options)
    return intakes


def _plan(
    root: Path,
    options: Watch,
    passport: ModelPassport,
    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    model_key: int,
) -> WatchPlan:
    parse = open_layout(options.layout, pattern=options.pattern or None, wells=options.wells or None)

    def prepare(file: ImageFile) -> Prepared:
        return prepare_file(file, passport)

    return WatchPlan(
        root=root,
        options=options,
        parse=parse,
        recipe=Recipe(passport.model_id, prepare, score),
        model_key=model_key,
        threshold=passport.threshold,
        barcodes=read_barcodes(options.barcodes) if options.barcodes else {},
    )


def prepare_file(file: ImageFile, passport: ModelPassport) -> Prepared:
    """Read one image and crop its cells; raise IncompleteImageError when the file changed meanwhile."""
    read = ndtiff_pixels if is_ndtiff(file.path) else read_pixels
    pixels = read(file.path, file.page)
    now = sight(file.path)
    if (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
        raise IncompleteImageError(f"{file.path} changed while it was being read; it is read again when it rests")
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Prepared(prepare_field(FieldImage(file, pixels), passport), digest.hexdigest())


def lazy_scorer(folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return a scoring function that loads its network on first use: a folder without cells needs none."""
    loaded: list[Any] = []

    def score(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not loaded:
            from models.scorer import Scorer

            loaded.append(Scorer(folder))
        values: NDArray[np.float32] = loaded[0].score(crops)
        return values

    return score


def _import_map(connection: Connection, options: Watch) -> None:
    if options.platemap is None or not options.plate:
        raise UsageError(f"the plate map {options.platemap} needs the plate it is for; set plate for that folder")
    found = read_platemap(
        options.platemap,
        wells=options.plate_wells,
        timezone=options.timezone or None,
        treated_at=options.treated_at,
    )
    for note in found.notes:
        log.info("%s: %s", options.platemap, note)
    plates.import_treatments(connection, options.plate, found.treatments, options.treated_at)
