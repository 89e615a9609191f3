"""Is all well, and how much is done: /health for watchdogs, /metrics for Prometheus."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import DBAPIError

from db.engine import store_errors
from sesmo_live.errors import StoreError
from sesmo_live.overview import RunStatus, run_status
from sesmo_live.web.shapes import Health

router = APIRouter(tags=["care"])


@router.get("/health", responses={503: {"model": Health}})
def health(request: Request, response: Response) -> Health:
    """Whether the database answers and every watched folder is worked on; 503 and why, if not."""
    state = request.app.state
    try:
        with store_errors(state.url):
            status = run_status(state.engine, state.url)
        reasons = tuple(troubles(status))
    except (StoreError, OSError, DBAPIError):
        reasons = ("the database cannot be read; see what the server says of it",)
    response.status_code = 503 if reasons else 200
    return Health(ok=not reasons, reasons=reasons)


def troubles(status: RunStatus) -> Iterator[str]:
    """Say what keeps images from being scored; a database without a daemon is well: nothing is expected of it."""
    for folder in status.folders:
        if not folder.alive:
            yield f"the daemon that watches {folder.name} gave no sign of life for {folder.beat_age_s:.0f} s; start it"
        elif folder.trouble:
            yield folder.trouble
    for incident in status.incidents:
        if incident.acknowledged_at is None:
            yield incident.message
    if status.disk_free_bytes is not None and status.disk_free_bytes < 2**30:
        yield f"the database's disk has {status.disk_free_bytes / 2**20:.0f} MiB left; make room on it"


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Figures for Prometheus, taken from the database at the moment of the scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(run_status(request.app.state.engine, request.app.state.url)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Figures:
    """What prometheus-client calls a collector."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        status, images = self._status, self._status.images
        states = GaugeMetricFamily("sesmo_images", "images in the ledger by state", labels=["state"])
        for state in ("pending", "scored", "refused", "failed", "skipped", "superseded"):
            states.add_metric([state], getattr(images, state))
        yield states
        yield _gauge("sesmo_images_excluded", "images that a person took out of their wells", images.excluded)
        yield _gauge("sesmo_queue_depth", "images that wait to be scored", status.queue)
        yield _gauge("sesmo_cells", "cells scored", status.cells)
        yield _gauge("sesmo_failures", "images that failed", images.failed)
        yield _gauge("sesmo_images_per_second", f"over the last {status.window_s:.0f} s", status.images_per_s)
        yield _gauge("sesmo_cells_per_second", f"over the last {status.window_s:.0f} s", status.cells_per_s)
        if status.seconds_to_score is not None:
            text = "median seconds from first sighting to score of the last images"
            yield _gauge("sesmo_seconds_to_score", text, status.seconds_to_score)
        yield _gauge("sesmo_incidents_open", "incidents that are not over", len(status.incidents))
        if status.disk_free_bytes is not None:
            yield _gauge("sesmo_disk_free_bytes", "room on the database's disk", status.disk_free_bytes)
        yield from self._folders()

    def _folders(self) -> Iterator[Metric]:
        scan = GaugeMetricFamily("sesmo_scan_age_seconds", "seconds since the folder was looked at", labels=["folder"])
        beat = GaugeMetricFamily("sesmo_beat_age_seconds", "seconds since the daemon spoke", labels=["folder"])
        named: dict[str, int] = {}
        for folder in self._status.folders:
            named[folder.name] = named.get(folder.name, 0) + 1
            label = folder.name if named[folder.name] == 1 else f"{folder.name} ({named[folder.name]})"
            beat.add_metric([label], folder.beat_age_s)
            if folder.scan_age_s is not None:
                scan.add_metric([label], folder.scan_age_s)
        yield scan
        yield beat


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
