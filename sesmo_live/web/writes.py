"""The API's changes: each needs the token, is one short transaction, and is beside a running daemon's work."""

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from fastapi import Path as PathParameter

from sesmo_live import changes, overview
from sesmo_live.changes import Imported
from sesmo_live.errors import PlateMapError
from sesmo_live.overview import FieldView, IncidentView
from sesmo_live.platemap import read_platemap
from sesmo_live.platemap.times import parse_treated_at
from sesmo_live.web.problems import WRITE_PROBLEMS
from sesmo_live.web.shapes import LARGEST, Exclusion, ImageId, PlateName, Retried, Retry
from sesmo_live.wells import PLATE_SHAPES

router = APIRouter(prefix="/api/v1", responses=WRITE_PROBLEMS, tags=["changes"])

MAP_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".platemap")


@router.post("/retry")
def retry(request: Request, wanted: Retry) -> Retried:
    """Have failed images tried again: by the running daemon within seconds, else by the next run."""
    count = changes.retry(
        request.app.state.url,
        plate=wanted.plate,
        images=wanted.images,
        reason=wanted.reason,
        everything=wanted.everything,
    )
    return Retried(images=count)


@router.put("/images/{image_id}/exclusion")
def exclude(request: Request, image_id: ImageId, wanted: Exclusion) -> FieldView:
    """Take an image out of its well, for a reason; its scores are kept."""
    changes.exclude(request.app.state.url, image_id, wanted.reason.strip())
    return overview.field_cells(request.app.state.engine, image_id).field


@router.delete("/images/{image_id}/exclusion")
def include(request: Request, image_id: ImageId) -> FieldView:
    """Bring an image back that was taken out of its well."""
    changes.exclude(request.app.state.url, image_id, "")
    return overview.field_cells(request.app.state.engine, image_id).field


@router.put("/plates/{name:path}/platemap")
def import_platemap(
    request: Request,
    name: PlateName,
    content: Annotated[bytes, Body(media_type="application/octet-stream", description="the file as it is")],
    filename: Annotated[
        str, Query(min_length=5, max_length=200, description="its name, which tells its kind: .csv, .tsv, .xlsx, …")
    ],
    treated_at: Annotated[
        str | None, Query(max_length=40, description="when the wells were treated (ISO 8601 with offset)")
    ] = None,
    plate_wells: Annotated[int | None, Query(description="wells of the plate: 6 to 1536")] = None,
) -> Imported:
    """Record what is in the wells of a plate, for all its runs; a later map replaces an earlier one."""
    suffix = Path(filename).suffix.lower()
    if suffix not in MAP_SUFFIXES:
        raise PlateMapError(f"the plate map's name ends in {suffix!r}; send one of {', '.join(MAP_SUFFIXES)}")
    if plate_wells is not None and plate_wells not in PLATE_SHAPES:
        raise PlateMapError(f"there is no plate of {plate_wells} wells; say one of {', '.join(map(str, PLATE_SHAPES))}")
    moment = parse_treated_at(treated_at, None) if treated_at else None
    with tempfile.TemporaryDirectory(prefix="sesmo-") as folder:
        file = Path(folder) / f"platemap{suffix}"
        file.write_bytes(content)
        found = read_platemap(file, wells=plate_wells, treated_at=moment)
    return changes.import_map(request.app.state.url, name.strip(), found, moment)


@router.post("/incidents/{incident_id}/acknowledgement")
def acknowledge(request: Request, incident_id: Annotated[int, PathParameter(ge=1, le=LARGEST)]) -> IncidentView:
    """Note that somebody has seen an incident."""
    changes.acknowledge(request.app.state.url, incident_id)
    return overview.incident(request.app.state.engine, incident_id)
