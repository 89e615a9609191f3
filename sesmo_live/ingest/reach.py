"""Whether files and folders can be reached, asked so that a share that falters is not taken for a deletion."""

from pathlib import Path


def is_there(path: Path) -> bool:
    """Say whether a file is there, or may be: only the system's word that it is not counts against it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def device_of(folder: Path) -> int | None:
    """Return the device that a folder lies on, None when it cannot be reached."""
    try:
        return folder.stat().st_dev
    except OSError:
        return None
