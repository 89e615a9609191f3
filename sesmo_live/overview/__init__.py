"""What the page and the API show: the numbers of `results`, laid out for a screen, as frozen nouns."""

from sesmo_live.overview.plated import Left, Plated, newest_curves, plated
from sesmo_live.overview.plates import incident, incidents, plate_map, plates
from sesmo_live.overview.run import run_status
from sesmo_live.overview.views import (
    Beside,
    CellView,
    ControlBand,
    Counts,
    Departure,
    FieldCells,
    FieldView,
    FolderView,
    IncidentView,
    LastImage,
    PlateMap,
    PlateSummary,
    RunStatus,
    TimePoint,
    WellOnMap,
    WellView,
)
from sesmo_live.overview.wells import counted, field_cells, fields_of, well_beside, well_view

__all__ = [
    "Beside",
    "CellView",
    "ControlBand",
    "Counts",
    "Departure",
    "FieldCells",
    "FieldView",
    "FolderView",
    "IncidentView",
    "LastImage",
    "Left",
    "PlateMap",
    "PlateSummary",
    "Plated",
    "RunStatus",
    "TimePoint",
    "WellOnMap",
    "WellView",
    "counted",
    "field_cells",
    "fields_of",
    "incident",
    "incidents",
    "newest_curves",
    "plate_map",
    "plated",
    "plates",
    "run_status",
    "well_beside",
    "well_view",
]
