"""A virtual phase-contrast microscope: cells of known senescence, seen through real optics' equations."""

from acquisition.simulator.optics import Camera, Optics
from acquisition.simulator.plate import Response, VirtualPlate, WellTruth, demo_plate, platemap_rows
from acquisition.simulator.rendering import (
    LabelledField,
    level_at,
    render_at,
    render_field,
    training_fields,
    visible_cells,
    well_truth,
)
from acquisition.simulator.writer import write_plate, write_platemap, write_truth

__all__ = [
    "Camera",
    "LabelledField",
    "Optics",
    "Response",
    "VirtualPlate",
    "WellTruth",
    "demo_plate",
    "level_at",
    "platemap_rows",
    "render_at",
    "render_field",
    "training_fields",
    "visible_cells",
    "well_truth",
    "write_plate",
    "write_platemap",
    "write_truth",
]
