"""What the tests of the pages share: plates of real rows, and a server on a free port."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import uvicorn
from sqlalchemy import Connection

from acquisition.tiff import read_pixels
from db import ledger, plates, scores
from db.care import upgrade
from db.engine import open_engine
from models.convert import DEFAULT
from sesmo_live.records import CellScores, ImageFile, ModelPassport, Site, Treatment
from sesmo_live.web.app import create_app
from tests.conftest import write_image

BEGAN = datetime(2026, 7, 1, 12, tzinfo=UTC)
TOKEN = "a-token-of-the-tests"  # noqa: S105 — of a server that lives as long as one test
WARNING = "DEMONSTRATION weights, trained on nothing: not for biological conclusions"

PASSPORT = ModelPassport(
    name="stub",
    version="1",
    network="deep-sesmo",
    input_px=50,
    pixel_um=None,
    conversion=DEFAULT,
    cropper="deep-sesmo-either",
    cropper_settings={},
    threshold=0.5,
    weights_sha256="",
    demonstration=WARNING,
)

TREATMENTS = (
    Treatment("A01", "DMSO", "negative"),
    Treatment("B01", "DMSO", "negative"),
    Treatment("A02", "doxorubicin", "treatment", 0.1, "µM", 0.1, aliases=("Adriamycin",)),
    Treatment("A03", "doxorubicin", "treatment", 1.0, "µM", 1.0),
    Treatment("B02", "doxorubicin", "treatment", 1.0, "µM", 1.0),
    Treatment("A04", "etoposide", "positive", 10.0, "µM", 10.0),
    Treatment("B03", "metformin", "treatment", 5.0, "µM", 5.0),
)
WELLS = tuple(item.well for item in TREATMENTS)


def add_plate(
    db: Path,
    name: str = "P1",
    *,
    run: str = "2026-07-01",
    wells: Sequence[str] = WELLS,
    times: int = 3,
    size: int = 24,
    treatments: Sequence[Treatment] = TREATMENTS,
    images: Path | None = None,
) -> int:
    """Write a plate as the service does, two fields a well, and return its key; with TIFFs in the folder `images`."""
    upgrade(db)
    engine = open_engine(db, write=True, checkpoint=False)
    with engine.begin() as connection:
        plate = plates.find_or_add_plate(connection, name, run, f"/acq/{name}")
        plates.describe_plate(connection, plate, {"wells": size})
        plates.import_treatments(connection, name, treatments, BEGAN)
        for at in range(times):
            add_images(connection, plate, name, wells, at, images)
    engine.dispose()
    return plate


def add_images(
    connection: Connection, plate: int, name: str, wells: Sequence[str], timepoint: int, images: Path | None = None
) -> None:
    """Write two scored fields a well of one time point, a day after the one before; scores differ by well and time."""
    model = scores.ensure_model(connection, PASSPORT)
    for number, well in enumerate(wells):
        for field in (1, 2):
            rng = np.random.default_rng([number, timepoint, field])
            image = add_image(connection, plate, name, well, field, timepoint, images=images)
            values = rng.beta(2 + number * (timepoint + 1) / 2, 6, 12).astype(np.float32)
            path = Path(f"{well}_{field}_{timepoint}.tif")
            file = ImageFile(path, 0, Site(name, well, field, timepoint), 1, 1)
            found = CellScores(file, values, rng.uniform(30, 220, (12, 2)), PASSPORT.model_id)
            scores.save_scores(connection, image, model, found, 0.5, {"tile_sharpness": -0.4 + field / 10})


def add_image(
    connection: Connection,
    plate: int,
    name: str,
    well: str,
    field: int,
    timepoint: int,
    *,
    state: str = "scored",
    reason: str = "",
    file: str = "",
    images: Path | None = None,
) -> int:
    """Write one image's row in the ledger and return its key."""
    file = file or f"{well}_f{field}_t{timepoint}_cPhase_z0.tif"
    path = (images or Path(f"/acq/{name}")) / file
    sha256 = None
    if images is not None:
        pixels = read_pixels(write_image(path, timepoint + 10 * field), 0)
        sha256 = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes()).hexdigest()
    row = {
        "path": str(path), "name": file, "page": 0, "plate_id": plate, "well": well, "field": field,
        "timepoint": timepoint, "channel": "Phase", "z": 0, "size": 1, "mtime_ns": 1, "state": state,
        "reason": reason, "acquired_at": BEGAN + timedelta(hours=24 * timepoint), "acquired_from": "name",
        "seen_at": BEGAN, "sha256": sha256,
    }  # fmt: skip
    return ledger.insert_images(connection, [row])[0]


@contextmanager
def server(db: Path, token: str | None = TOKEN) -> Iterator[str]:
    """Serve the pages of a database on a free port of this computer; yield the address."""
    ends: list[uvicorn.Server] = []
    app = create_app(
        str(db), token=token, hosts=["127.0.0.1", "localhost"], closing=lambda: any(end.should_exit for end in ends)
    )
    config = uvicorn.Config(app, port=0, log_level="warning", ws="none", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    ends.append(running)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(10)
