"""The API's pictures: fields, cells and Grad-CAM as PNG."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from sesmo_live import overview
from sesmo_live.errors import UnknownNameError
from sesmo_live.web import pixels
from sesmo_live.web.problems import PROBLEMS
from sesmo_live.web.shapes import LARGEST, ImageId, ModelName

PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
HEADERS = {"cache-control": "private, max-age=300"}

router = APIRouter(prefix="/api/v1", responses={**PROBLEMS, **PNG}, tags=["pictures"], default_response_class=Response)


@router.get("/images/{image_id}/field.png")
def field(
    request: Request,
    image_id: ImageId,
    width: Annotated[int, Query(ge=32, le=4096, description="px at most")] = 640,
    rings: Annotated[bool, Query(description="a ring in the colour of its score round each cell")] = False,
    model: ModelName = None,
) -> Response:
    """A field, with the contrast stretched."""
    from models.prepare import scale_of  # loads slowly, and a server starts without a picture

    engine = request.app.state.engine
    found = pixels.field_pixels(engine, image_id)
    if not rings:
        return _png(pixels.field_png(found, (), width, 0))
    view = overview.field_cells(engine, image_id, model)
    if not view.model:
        return _png(pixels.field_png(found, (), width, 0))
    passport, pixel_um = pixels.passport_of(engine, image_id, view.model)
    cell_px = passport.input_px / scale_of(pixel_um, passport)
    return _png(pixels.field_png(found, view.cells, width, cell_px))


@router.get("/images/{image_id}/cells/{idx}.png")
def cell(
    request: Request,
    image_id: ImageId,
    idx: Annotated[int, Path(ge=0, le=LARGEST, description="number of a cell in its image")],
    size: Annotated[int, Query(ge=16, le=1024, description="px")] = 96,
    model: ModelName = None,
) -> Response:
    """A cell as its model gets it."""
    engine = request.app.state.engine
    view = overview.field_cells(engine, image_id, model)
    wanted = next((cell for cell in view.cells if cell.idx == idx), None)
    if wanted is None:
        raise UnknownNameError(f"image {image_id} has no cell {idx}; its cells are listed under /cells")
    passport, pixel_um = pixels.passport_of(engine, image_id, view.model)
    return _png(pixels.cell_png(pixels.field_pixels(engine, image_id), wanted, passport, pixel_um, size))


@router.get("/images/{image_id}/explain.png")
def explain(request: Request, image_id: ImageId, model: ModelName = None) -> Response:
    """Grad-CAM of a field: what in it speaks for which class. It is made once, which takes up to a minute."""
    return _png(request.app.state.explainer.picture(image_id, model))


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png", headers=HEADERS)
