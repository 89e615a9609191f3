"""Plate maps: from whatever file a laboratory keeps to treatments of wells."""

from sesmo_live.platemap.doses import parse_dose
from sesmo_live.platemap.reading import PlateMap, read_barcodes, read_platemap

__all__ = ["PlateMap", "parse_dose", "read_barcodes", "read_platemap"]
