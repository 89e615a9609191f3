"""Grad-CAM for the page: made by a child process, which may import TensorFlow, once for an image and a model."""

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Engine

from db import shown
from db.sqlite import database_url, sqlite_path
from sesmo_live import overview
from sesmo_live.children import child, child_environment
from sesmo_live.errors import ModelError, SesmoError, UnknownNameError
from sesmo_live.web.pixels import field_pixels

LIMIT_S = 120.0
"""Seconds that an explanation may take."""
MOST_WAITING = 3
"""Explanations asked for at a time; more are refused, so that nobody can fill the server with them."""


class BusyError(SesmoError):
    """Too many explanations are asked for at once."""


class Explainer:
    """Makes explanations one at a time and keeps them in a folder beside the database."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        models: Sequence[Path] = (),
        limit_s: float = LIMIT_S,
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._closing = engine, closing
        file = sqlite_path(database_url(url))
        self._folder = Path(f"{file}.explained") if file else Path(tempfile.gettempdir()) / "sesmo-explained"
        self._models = tuple(models)
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._room = threading.BoundedSemaphore(MOST_WAITING)

    def picture(self, image_id: int, model: str | None) -> bytes:
        """Return the Grad-CAM map of an image as PNG.

        Raises UnknownNameError for what is not there (image, score, file, model), BusyError while too many wait.
        """
        view = overview.field_cells(self._engine, image_id, model)
        if not view.cells:
            raise UnknownNameError(f"image {image_id} has no scored cells, so there is nothing to explain")
        with self._engine.connect() as connection:
            place = shown.image_place(connection, image_id)
        if place is None or place.sha256 is None:
            raise UnknownNameError(f"image {image_id} was never read, so there is nothing to explain")
        # Numbers of images begin again in another database; pixels do not.
        kept = self._folder / f"{place.sha256[:32]}-{view.model}.png"
        if kept.is_file():
            return kept.read_bytes()
        if not self._room.acquire(blocking=False):
            raise BusyError("other explanations are being made; ask again in a minute")
        try:
            with self._turn:
                if not kept.is_file():
                    self._make(image_id, place, view.model, kept)
                return kept.read_bytes()
        finally:
            self._room.release()

    def _make(self, image_id: int, place: shown.ImagePlace, model: str, kept: Path) -> None:
        field_pixels(self._engine, image_id)  # the file is there, and as it was scored
        words = [place.path, "--model", str(self._folder_of(model)), "--page", str(place.page)]
        if place.pixel_um:
            words += ["--pixel-um", str(place.pixel_um)]
        self._folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="making-") as out:
            code = self._run(child("sesmo_live.cli:main", "explain", *words, "--out", out))
            made = Path(out) / "gradcam.png"
            if code or not made.is_file():
                raise UnknownNameError(f"image {image_id} cannot be explained; try: sesmo-live explain")
            made.replace(kept)

    def _run(self, command: list[str]) -> int:
        """Run a child and return its exit code; end it, and raise BusyError, at its limit or the server's end."""
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=child_environment(), stdin=quiet, stdout=quiet, stderr=quiet) as process:
            until = time.monotonic() + self._limit_s
            try:
                while process.poll() is None:
                    if self._closing():
                        raise BusyError("the server ends; ask again when it is back")
                    if time.monotonic() > until:
                        raise BusyError(f"the explanation took longer than {self._limit_s:.0f} s; try again later")
                    time.sleep(0.1)
            finally:
                process.kill()
        return process.returncode

    def _folder_of(self, model: str) -> Path:
        """Return the folder of the model of that id, among those of the configuration, the user and this program."""
        from models.passport import list_models, read_passport  # loads slowly, and is rarely asked for

        try:
            for folder in self._models:
                if folder.is_dir() and read_passport(folder).is_of(model):
                    return folder
            return next(folder for folder, passport in list_models() if passport.is_of(model))
        except (StopIteration, ModelError) as error:
            text = f"model {model} is not on this computer, so it cannot explain; copy its folder to the user's models"
            raise UnknownNameError(text) from error
