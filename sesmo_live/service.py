"""The one place where the parts are wired: settings in, a running service out."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_state_path
from sqlalchemy import Connection

from acquisition.isolation import Isolated
from acquisition.layouts import open_layout
from acquisition.ndtiff import is_ndtiff, ndtiff_pixels
from acquisition.shares import is_network
from acquisition.tiff import read_pixels
from acquisition.witness import Witness
from db import plates
from db.care import check_quickly, upgrade
from db.engine import ingest_lock, open_engine, store_errors
from db.schema import SHARED
from db.scores import ensure_model
from db.sqlite import database_url, sqlite_path
from models.backend import cap_gpu_memory
from models.passport import find_model, read_passport, read_weights
from models.prepare import judge_field, prepare_field
from models.refusal import untested
from sesmo_live.alerts import Notifier
from sesmo_live.config import Settings, Watch
from sesmo_live.errors import IncompleteImageError, StorePausedError, UsageError
from sesmo_live.heartbeat import notify
from sesmo_live.ingest.placing import Read, WatchPlan, read_barcodes, sight
from sesmo_live.loop import Progress, progress_of
from sesmo_live.pipeline import AnyPipeline, Halt, Outcome, Pipeline, Prepared, Recipe
from sesmo_live.platemap import read_platemap
from sesmo_live.records import FieldImage, ImageFile, ModelPassport, Precision, Site
from sesmo_live.reduced import precision_cost
from sesmo_live.session import OpenPipeline, Session
from sesmo_live.vigil import Vigil

__all__ = ["Progress", "Summary", "lazy_scorer", "prepare_image", "run", "score_folder"]

log = logging.getLogger(__name__)

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


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
    open_pipeline: OpenPipeline | None = None,
) -> Summary:
    """Score everything that lies in the watched folders now, once; what was scored before stays as it is.

    Setting `stop` ends it early: images under way are finished, the others stay pending. `open_pipeline` gives the
    work to others than this process, as `sesmo_live.cluster` does.
    """
    stop = stop or threading.Event()
    return _serve(settings, stop, once=True, on_progress=on_progress, open_pipeline=open_pipeline)


def run(settings: Settings, stop: threading.Event, on_progress: Callable[[Progress], None] | None = None) -> Summary:
    """Watch the folders and score what lands until `stop` is set; images under way are finished first."""
    return _serve(settings, stop, once=False, on_progress=on_progress)


def _serve(
    settings: Settings,
    stop: threading.Event,
    *,
    once: bool,
    on_progress: Callable[[Progress], None] | None,
    open_pipeline: OpenPipeline | None = None,
) -> Summary:
    """Wire everything, work until there is nothing left (`once`) or `stop` is set, and take everything down.

    When the database can take nothing, all work is dropped, and begun again from the ledger once it can: there is one
    way of going on, whether the disk was full or the power cut.
    """
    began = time.monotonic()
    url = settings.database.url
    folders = _folders(settings)
    with ExitStack() as stack:
        notifier = stack.enter_context(Notifier(settings.alerts.urls))
        stack.enter_context(ingest_lock(url))
        check_quickly(url)  # before it is migrated: what is damaged must not be
        upgrade(url)
        models = _models(settings, try_them=not once)
        reads, suspects = stack.enter_context(_readers(settings, [folder.root for folder in folders]))
        engine = open_engine(url, write=True)
        stack.callback(engine.dispose)
        plans = []
        with store_errors(url), engine.begin() as connection:
            for folder, read in zip(folders, reads, strict=True):
                model = models[folder.options.model or settings.scoring.model]
                key = ensure_model(connection, model.passport)
                plan = _plan(settings, folder, model, key, read)
                own = SHARED if folder.options.shared else settings.service.daemon
                source = "" if sqlite_path(database_url(url)) else own
                plans.append(replace(plan, suspects=suspects, once=once, source=source))
                _import_map(connection, folder.options)
        notify("READY=1")
        vigil = Vigil(settings.alerts, notifier)
        session = Session(settings, plans, engine, vigil, stop, on_progress, open_pipeline or _pipeline_here(settings))
        while True:
            try:
                session.work()
                if not session.goes_on:
                    break
            except StorePausedError as error:
                session.wait_for_store(error)
        notify("STOPPING=1")
        failures = tuple(failure for intake in session.intakes for failure in intake.files.failures())
        return Summary(progress_of(session.intakes), time.monotonic() - began, failures)


def _pipeline_here(settings: Settings) -> OpenPipeline:
    """Return what opens a pipeline on threads of this process."""

    def open_pipeline(deliver: Callable[[Outcome | Halt], None]) -> AnyPipeline:
        scoring = settings.scoring
        return Pipeline(
            deliver, readers=scoring.readers, batch_cells=scoring.batch_cells, max_wait_s=scoring.max_wait_s
        )

    return open_pipeline


@dataclass(frozen=True, slots=True)
class _Folder:
    """A watched folder that was checked: where it is, how its names are parsed, which plates its codes stand for."""

    root: Path
    options: Watch
    parse: Callable[[Path, Path], Any]
    barcodes: dict[str, str]


def _folders(settings: Settings) -> list[_Folder]:
    """Return the watched folders; raise UsageError for all that can be told to be wrong before any work."""
    found = []
    for root, options in zip(_roots(settings), settings.watch, strict=True):
        if options.platemap and not options.plate:
            raise UsageError(f"the plate map {options.platemap} needs the plate it is for; set plate for that folder")
        if options.shared and sqlite_path(database_url(settings.database.url)):
            raise UsageError(f"{root} cannot be shared through a SQLite file; give [database] a PostgreSQL URL")
        parse = open_layout(options.layout, pattern=options.pattern or None, wells=options.wells or None)
        found.append(_Folder(root, options, parse, read_barcodes(options.barcodes) if options.barcodes else {}))
    return found


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

    folder: Path
    passport: ModelPassport
    score: Score


def _models(settings: Settings, *, try_them: bool) -> dict[str, _Model]:
    """Return the models by the names that the settings use; a model that cannot be trusted ends the run here.

    A night's run tries them: it learns at its start, not at the first image, whether detector and network work.
    """
    found: dict[Path, _Model] = {}
    models: dict[str, _Model] = {}
    precision = settings.scoring.precision
    if settings.scoring.gpu_memory_mb is not None:
        cap_gpu_memory(settings.scoring.gpu_memory_mb)
    for name in {options.model or settings.scoring.model for options in settings.watch}:
        folder = find_model(name or None)
        if folder not in found:
            passport = replace(read_passport(folder), precision=precision)
            read_weights(folder, passport)
            found[folder] = _Model(folder, passport, lazy_scorer(folder, precision))
            if passport.demonstration:
                log.warning("model %s: %s", passport.model_id, passport.demonstration)
            if settings.scoring.refuse and (gap := untested(passport.reference)):
                log.warning("model %s: %s", passport.model_id, gap)
        models[name] = found[folder]
    for model in found.values() if try_them else ():
        side = model.passport.input_px
        file = ImageFile(Path("blank"), 0, Site("", "A01", 1, 1), 0, 0)
        prepare_field(FieldImage(file, np.zeros((2 * side, 2 * side), np.uint8)), model.passport)
        model.score(np.zeros((1, side, side), np.uint8))
    return models


@contextmanager
def _readers(settings: Settings, roots: list[Path]) -> Iterator[tuple[list[Read], dict[str, list[int]]]]:
    """Give, for each folder, how its files are opened: here, or apart if nobody vouches for them; and the suspects.

    Files that were being read when this program last died are read apart in any case.
    """
    wish, decoding = settings.decoding.isolate, settings.decoding
    workers = settings.scoring.readers
    note = None if wish == "never" else _note(settings, roots)
    with (
        Isolated(workers=workers, timeout_s=decoding.timeout_s, memory_mb=decoding.memory_mb) as pool,
        Witness(note, pool.call) as witness,
    ):
        for path in sorted(witness.suspects):
            log.warning("%s was being read when this program ended; it is read in a process of its own", path)
        apart = [wish == "always" or (wish == "auto" and is_network(root)) for root in roots]
        yield [pool.call if isolated else witness.read for isolated in apart], witness.suspects


def _note(settings: Settings, roots: list[Path]) -> Path | None:
    """Return where it is noted what is being read: beside a SQLite file, else among this user's own files."""
    database = sqlite_path(database_url(settings.database.url))
    if database is not None:
        return Path(f"{database}.reading")
    folder = Path(
        os.environ.get("STATE_DIRECTORY") or user_state_path("sesmo-live", appauthor=False)
    )  # systemd's, if it gave one
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("what is being read cannot be noted in %s (%s): a file may kill this program twice", folder, error)
        return None
    whose = "\n".join([settings.service.daemon, *map(str, roots)])
    return folder / f"{hashlib.sha256(whose.encode()).hexdigest()[:16]}.reading"


def _plan(settings: Settings, folder: _Folder, model: _Model, model_key: int, read: Read) -> WatchPlan:
    def prepare(file: ImageFile) -> Prepared:
        return prepare_image(file, model.passport, read)

    return WatchPlan(
        root=folder.root,
        options=folder.options,
        parse=folder.parse,
        recipe=Recipe(model.passport.model_id, prepare, model.score, settings.scoring.refuse, model.folder),
        model_key=model_key,
        threshold=model.passport.threshold,
        watching=settings.watching,
        read=read,
        barcodes=folder.barcodes,
    )


def prepare_image(file: ImageFile, passport: ModelPassport, read: Read) -> Prepared:
    """Read one image, crop its cells and judge it; raise IncompleteImageError when the file changed meanwhile."""
    appended = is_ndtiff(file.path)  # its index grows while it is read, and what stands there stays
    pixels = read(ndtiff_pixels if appended else read_pixels, file.path, file.page)
    now = sight(file.path)
    if not (appended or file.growing) and (now.size, now.mtime_ns) != (file.size, file.mtime_ns):
        raise IncompleteImageError(f"{file.path} changed while it was being read; it is read again when it rests")
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    field = FieldImage(file, pixels)
    cells = prepare_field(field, passport)
    quality, reasons = judge_field(field, cells, passport)
    return Prepared(cells, digest.hexdigest(), quality, tuple(reasons))


def lazy_scorer(folder: Path, precision: Precision = "fp32", threads: int | None = None) -> Score:
    """Return a scoring function that loads its network on first use: a folder without cells needs none.

    In another precision than fp32 it then logs by how much that changes scores. `threads` caps the cores of one
    operation; None takes all.
    """
    loaded: list[Any] = []

    def score(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not loaded:
            from models.scorer import Scorer

            loaded.append(Scorer(folder, threads=threads, precision=precision))
            if precision != "fp32":
                log.info("%s", precision_cost(loaded[0], Scorer(folder)))
        values: NDArray[np.float32] = loaded[0].score(crops)
        return values

    return score


def _import_map(connection: Connection, options: Watch) -> None:
    if options.platemap is None:
        return
    found = read_platemap(
        options.platemap,
        wells=options.plate_wells,
        timezone=options.timezone or None,
        treated_at=options.treated_at,
    )
    for note in found.notes:
        log.info("%s: %s", options.platemap, note)
    plates.import_treatments(connection, options.plate, found.treatments, options.treated_at)


def cost_of_precision(folder: Path, precision: Precision) -> str:
    """Return in words by how much a reduced precision changes a model's scores; loads its network twice."""
    from models.scorer import Scorer

    return precision_cost(Scorer(folder, precision=precision), Scorer(folder))
