"""The one place where the parts are wired: settings in, a running service out."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
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

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

GROUP_COMMIT = 64
"""At most so many messages are written in one transaction."""

SIGHTING_PIECE = 500
"""At most so many files are entered in one transaction."""


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
    """Wire everything, work until there is nothing left (`once`) or `stop` is set, and take everything down."""
    began = time.monotonic()
    roots = _roots(settings)
    models = _models(settings)
    if not once:
        for model in models.values():
            # A night's run learns at its start, not at the first image, whether the network works.
            model.score(np.zeros((1, model.passport.input_px, model.passport.input_px), np.uint8))
    url = settings.database.url
    inbox: Queue[Any] = Queue()
    with ExitStack() as stack:
        stack.enter_context(ingest_lock(url))
        upgrade(url)
        engine = open_engine(url, write=True)
        stack.callback(engine.dispose)
        scoring = settings.scoring
        pipeline = Pipeline(
            inbox.put, readers=scoring.readers, batch_cells=scoring.batch_cells, max_wait_s=scoring.max_wait_s
        )
        stack.callback(pipeline.close)
        ended = threading.Event()  # ends the watchers, also when the loop itself fails
        stack.callback(ended.set)
        with store_errors(url):
            intakes = _open_intakes(settings, roots, models, engine, pipeline, inbox.put, once=once)
            loop = _Loop(engine, intakes, inbox, on_progress)
            for intake in intakes:
                _start_watcher(intake, settings, ended, inbox, once=once)
            loop.until(lambda: stop.is_set() or (once and loop.idle))
        ended.set()
        pipeline.close()
        with store_errors(url):
            loop.drain()
    failures = tuple(failure for intake in intakes for failure in intake.failures())
    return Summary(loop.progress(), time.monotonic() - began, failures)


def _roots(settings: Settings) -> list[Path]:
    """Return the watched folders, resolved; raise UsageError when one is missing or lies within another."""
    if not settings.watch:
        raise UsageError("there is no folder to watch; give --watch FOLDER, or a [[watch]] block in the configuration")
    roots = [options.folder.expanduser().resolve() for options in settings.watch]
    for number, root in enumerate(roots):
        if not root.is_dir():
            raise UsageError(f"there is no folder {root} to watch; create it or correct the path")
        for other in roots[:number]:
            if root == other or root in other.parents or other in root.parents:
                raise UsageError(f"the watched folders {other} and {root} overlap; watch each image once")
    return roots


@dataclass(frozen=True, slots=True)
class _Model:
    """A model that was checked, and its scoring function, which loads the network on first use."""

    passport: ModelPassport
    score: Score


def _models(settings: Settings) -> dict[str, _Model]:
    """Return the models by the names that the settings use; a model that cannot be trusted ends the run here."""
    found: dict[Path, _Model] = {}
    models: dict[str, _Model] = {}
    for name in {options.model or settings.scoring.model for options in settings.watch}:
        folder = find_model(name or None)
        if folder not in found:
            passport = read_passport(folder)
            read_weights(folder, passport)
            found[folder] = _Model(passport, lazy_scorer(folder))
            if passport.demonstration:
                log.warning("model %s: %s", passport.model_id, passport.demonstration)
        models[name] = found[folder]
    return models


def _start_watcher(
    intake: Intake, settings: Settings, ended: threading.Event, inbox: "Queue[Any]", *, once: bool
) -> None:
    """Look at one folder, on a thread of its own; what it sees goes to the inbox in pieces, also its failure."""
    root, options, watching = intake.plan.root, intake.plan.options, settings.watching

    def sightings() -> Iterator[Sighting]:
        if once:
            files = scan(root)
            yield Sighting(new=files, settled=files, gone=[])
            return
        yield from watch(
            root,
            interval_s=watching.scan_interval_s,
            settle_s=watching.settle_s,
            stop=ended,
            arrival=options.arrival,
            events=watching.events,
        )

    def look() -> None:
        try:
            for number, sighting in enumerate(sightings()):
                missing = intake.missing(sighting.new) if number == 0 else []
                for piece in _pieces(sighting, missing):
                    inbox.put((intake, piece))
            inbox.put((intake, None))
        except Exception as error:  # noqa: BLE001 — a worker's top: without its watcher the run must stop loudly
            inbox.put(Halt(error))

    threading.Thread(target=look, name=f"watch {root.name}", daemon=True).start()


def _pieces(sighting: Sighting, missing: list[Path]) -> Iterator[Sighting]:
    """Yield a sighting in pieces, so that a large folder does not hold the database in one long transaction."""
    for start in range(0, len(sighting.new), SIGHTING_PIECE):
        yield Sighting(sighting.new[start : start + SIGHTING_PIECE], [], [])
    for start in range(0, len(sighting.settled), SIGHTING_PIECE):
        yield Sighting([], sighting.settled[start : start + SIGHTING_PIECE], [])
    if sighting.gone or missing:
        yield Sighting([], [], [*sighting.gone, *missing])


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
        self._watched_out: set[int] = set()

    @property
    def idle(self) -> bool:
        """Say whether every folder was looked at to its end and all that was found is done."""
        watched = len(self._watched_out) == len(self._intakes)
        return watched and self._inbox.empty() and not any(intake.busy for intake in self._intakes)

    def until(self, finished: Callable[[], bool]) -> None:
        """Handle messages until `finished`; look at it at least five times a second."""
        while not finished():
            self._handle(self._take(0.2))
        self._report(last=True)

    def drain(self) -> None:
        """Write the outcomes that have come back after the pipeline was closed."""
        while messages := self._take(0.0):
            self._handle([message for message in messages if isinstance(message, Outcome)])
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
        """Write messages, and files that are due again, in one transaction; then stop for what halts the run."""
        if messages or any(intake.has_due for intake in self._intakes):
            with self._engine.begin() as connection:
                for message in messages:
                    self._write(connection, message)
                for intake in self._intakes:
                    intake.retry_due(connection)
        for message in messages:
            if isinstance(message, Halt):
                _halt(message.error)
        self._report()

    def _write(self, connection: Connection, message: Any) -> None:
        if isinstance(message, Outcome):
            self._by_recipe[id(message.job.recipe)].finish(connection, message)
        elif not isinstance(message, Halt):
            intake, payload = message
            if payload is None:
                self._watched_out.add(id(intake))
            elif isinstance(payload, Sighting):
                intake.see(connection, payload)
            else:
                intake.inspected(connection, payload)

    def _report(self, *, last: bool = False) -> None:
        if self._on_progress and (last or time.monotonic() >= self._next_report):
            began = time.monotonic()
            self._on_progress(self.progress())
            # Counting takes longer the larger the plate is; it may take a twentieth of the time at most.
            self._next_report = time.monotonic() + max(0.25, 20 * (time.monotonic() - began))

    def progress(self) -> Progress:
        """Return how far the run has come."""
        counts = [intake.summary() for intake in self._intakes]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        return Progress(**totals, cells=sum(intake.cells for intake in self._intakes))


def _halt(error: Exception) -> None:
    if isinstance(error, SesmoError):
        raise error
    text = f"the run cannot go on: {type(error).__name__}: {error}; images not scored stay pending"
    raise ModelError(text) from error


def _open_intakes(
    settings: Settings,
    roots: list[Path],
    models: dict[str, _Model],
    engine: Engine,
    pipeline: Pipeline,
    post: Callable[[Any], None],
    *,
    once: bool,
) -> list[Intake]:
    """Wire every watched folder to its model, its plate map and what the ledger knows of it."""
    intakes = []
    with engine.begin() as connection:
        for root, options in zip(roots, settings.watch, strict=True):
            model = models[options.model or settings.scoring.model]
            plan = _plan(root, options, model, ensure_model(connection, model.passport))
            intake = Intake(replace(plan, retries=0 if once else settings.watching.retries), pipeline, post)
            intake.load(connection)
            intakes.append(intake)
            if options.platemap:
                _import_map(connection, options)
    return intakes


def _plan(root: Path, options: Watch, model: _Model, model_key: int) -> WatchPlan:
    def prepare(file: ImageFile) -> Prepared:
        return prepare_file(file, model.passport)

    return WatchPlan(
        root=root,
        options=options,
        parse=open_layout(options.layout, pattern=options.pattern or None, wells=options.wells or None),
        recipe=Recipe(model.passport.model_id, prepare, model.score),
        model_key=model_key,
        threshold=model.passport.threshold,
        barcodes=read_barcodes(options.barcodes) if options.barcodes else {},
    )


def prepare_file(file: ImageFile, passport: ModelPassport) -> Prepared:
    """Read one image and crop its cells; raise IncompleteImageError when the file changed meanwhile."""
    appended = is_ndtiff(file.path)  # its index grows while it is read, and what stands there stays
    pixels = ndtiff_pixels(file.path, file.page) if appended else read_pixels(file.path, file.page)
    now = sight(file.path)
    if not appended and (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
        raise IncompleteImageError(f"{file.path} changed while it was being read; it is read again when it rests")
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Prepared(prepare_field(FieldImage(file, pixels), passport), digest.hexdigest())


def lazy_scorer(folder: Path) -> Score:
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
