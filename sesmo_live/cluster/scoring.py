"""Score folders with the workers of a cluster: the ledger, and all that decides, stay in this process."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from models.cropper import TEXTURE
from models.detector_passport import DEFAULT_DETECTOR, find_detector
from models.passport import find_model, read_passport
from sesmo_live.cluster.alike import about
from sesmo_live.cluster.bundles import Bundle, read_bundle
from sesmo_live.cluster.crew import Crew
from sesmo_live.cluster.pipeline import ClusterPipeline
from sesmo_live.cluster.worker import Way
from sesmo_live.config import Settings
from sesmo_live.errors import ClusterError, UsageError
from sesmo_live.pipeline import AnyPipeline, Halt, Outcome, Recipe
from sesmo_live.service import Progress, Summary, cost_of_precision, score_folder

log = logging.getLogger(__name__)


def score_on_cluster(
    settings: Settings,
    address: str,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Do as `service.score_folder`, with the workers of the scheduler at `address` (`local`: begun here for it).

    Raises UsageError for a wrong address or folder, and ClusterError, before anything is written, where scheduler or
    workers cannot be used.
    """
    stop = stop or threading.Event()
    folders = [options.folder.expanduser().resolve() for options in settings.watch]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder} to watch; create it or correct the path")
    models = [find_model(options.model or settings.scoring.model or None) for options in settings.watch]
    kits = {folder: _Kit(folder) for folder in models}
    bundles = {sha256: bundle for kit in kits.values() for sha256, bundle in kit.bundles.items()}

    if settings.scoring.precision != "fp32":
        for folder in kits:
            log.info("%s", cost_of_precision(folder, settings.scoring.precision))

    def way_of(recipe: Recipe, path: Path) -> Way:
        if recipe.folder is None:
            raise ClusterError(f"the model {recipe.model_id} has no folder; it cannot be sent to workers")
        kit = kits[recipe.folder]
        root = next(folder for folder in folders if path.is_relative_to(folder))
        precision = settings.scoring.precision
        cap = settings.scoring.gpu_memory_mb
        return Way(kit.model, kit.detector, recipe.model_id, precision, cap, recipe.refuse, str(root), about())

    with Crew(address, stop) as crew:
        workers = crew.prepare(folders, bundles)

        def open_pipeline(deliver: Callable[[Outcome | Halt], None]) -> AnyPipeline:
            return ClusterPipeline(crew, workers, way_of, bundles, deliver, readers=settings.scoring.readers)

        return score_folder(settings, stop, on_progress, open_pipeline)


class _Kit:
    """What workers need for one model: it, and the detector that its cropper uses, if any; by hash."""

    def __init__(self, folder: Path) -> None:
        passport = read_passport(folder)
        model = read_bundle(folder)
        self.model, self.detector = model.sha256, ""
        self.bundles: dict[str, Bundle] = {self.model: model}
        name = passport.cropper_settings.get("detector", DEFAULT_DETECTOR)
        if passport.cropper == "centres" and name != TEXTURE:
            detector = read_bundle(find_detector(name))
            self.detector = detector.sha256
            self.bundles[self.detector] = detector
