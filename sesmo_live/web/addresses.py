"""Where the API keeps what belongs to an image; the pages name these addresses and nothing else of it."""

from urllib.parse import quote, urlencode

from sesmo_live.overview import CellView, FieldCells, FieldView, IncidentView

API = "/api/v1"
EVENTS = f"{API}/events"
RETRY = f"{API}/retry"


def thumbnail(field: FieldView, model: str) -> str:
    """Return the address of a field's picture, its cells ringed by score where it is scored."""
    rings = "true" if field.n_cells else "false"
    return f"{API}/images/{field.image_id}/field.png?{_query(model, width='512', rings=rings)}"


def gradcam(field: FieldView, model: str) -> str:
    """Return the address of a field's Grad-CAM."""
    return f"{API}/images/{field.image_id}/explain.png?{_query(model)}"


def crop(cells: FieldCells, cell: CellView) -> str:
    """Return the address of one cell's picture."""
    return f"{API}/images/{cells.field.image_id}/cells/{cell.idx}.png?{_query(cells.model, size='64')}"


def exclusion(field: FieldView) -> str:
    """Return the address at which a field is excluded, and counted again."""
    return f"{API}/images/{field.image_id}/exclusion"


def acknowledgement(incident: IncidentView) -> str:
    """Return the address at which an incident is noted as seen."""
    return f"{API}/incidents/{incident.incident_id}/acknowledgement"


def export(plate: str, suffix: str, run: str, model: str | None) -> str:
    """Return the address of a plate as a file to keep."""
    given = {"run": run, **({"model": model} if model else {})}
    return f"{API}/plates/{quote(plate, safe='')}/export.{suffix}?{urlencode(given)}"


def platemap(plate: str) -> str:
    """Return the address to which a plate's map is sent."""
    return f"{API}/plates/{quote(plate, safe='')}/platemap"


def _query(model: str, **more: str) -> str:
    return urlencode({"model": model, **more} if model else more)
