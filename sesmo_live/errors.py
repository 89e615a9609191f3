"""The one tree of errors; every message names the thing and the remedy."""


class SesmoError(Exception):
    """Something the user can understand and mend; the command line prints it as one sentence."""

    exit_code = 3
    """Process exit code when this error ends a command: 3, the run could not go on."""


class UsageError(SesmoError):
    """Wrong usage: a bad option, an unknown plate, a folder that is not there."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A plate, run, well, field, compound or model that the database does not hold."""


class ConfigError(UsageError):
    """`config.toml` cannot be used as it stands."""


class PlateMapError(UsageError):
    """A plate map cannot be used as it stands."""


class ImageError(SesmoError):
    """One image cannot be scored; it is recorded as failed and the run goes on."""

    exit_code = 1


class IncompleteImageError(ImageError):
    """The file is not all there yet; it stays pending and is looked at again."""


class ZeroTailError(IncompleteImageError):
    """The file is whole but ends in zeros, as room does that a copy has set aside and not yet filled."""


class ModelError(SesmoError):
    """A model folder cannot be trusted or used."""


class StatisticsError(UsageError):
    """A number cannot be computed from what there is; the message says why, and what would be needed."""


class ClusterError(SesmoError):
    """The workers of a cluster cannot be used; no image is to blame."""


class StoreError(SesmoError):
    """The database cannot be used."""


class StorePausedError(StoreError):
    """The database can take nothing now (disk full, locked, its disk away); it may again later, and nothing is lost."""
