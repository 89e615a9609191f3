"""Where the API keeps what belongs to an image; the pages name these addresses and nothing else of it."""

from sesmo_live.overview import CellView, FieldCells, FieldView

IMAGES = "/api/v1/images"


def thumbnail(field: FieldView) -> str:
    """Return the address of a field's picture, its cells ringed by score where it is scored."""
    return f"{IMAGES}/{field.image_id}/thumbnail?overlay={'true' if field.state == 'scored' else 'false'}"


def gradcam(field: FieldView) -> str:
    """Return the address of a field's Grad-CAM."""
    return f"{IMAGES}/{field.image_id}/gradcam"


def crop(cells: FieldCells, cell: CellView) -> str:
    """Return the address of one cell's picture."""
    return f"{IMAGES}/{cells.field.image_id}/cells/{cell.idx}/crop"


def exclusion(field: FieldView) -> str:
    """Return the address at which a field is excluded, and counted again."""
    return f"{IMAGES}/{field.image_id}/exclusion"


def retry(field: FieldView) -> str:
    """Return the address at which an image is tried again."""
    return f"{IMAGES}/{field.image_id}/retry"
