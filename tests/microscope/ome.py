"""What a frame says of itself."""

from pathlib import Path
from typing import Any

import tifffile


def ome(path: Path | str) -> dict[str, Any]:
    """Return the OME metadata of a frame."""
    with tifffile.TiffFile(path) as file:
        said: dict[str, Any] = tifffile.xml2dict(file.ome_metadata or "")["OME"]
    return said
