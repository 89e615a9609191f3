"""What reduced precision costs: by how much it changes a model's scores, on cells of the virtual microscope."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from acquisition.simulator import training_fields
from models.centres import crop_cells_at
from models.convert import to_uint8

if TYPE_CHECKING:
    from models.scorer import Scorer

_FIELDS, _SEED = 2, 8
_PIXEL_UM = 1.24
"""Scale at which a model without one of its own is shown cells, in µm per px."""


def precision_cost(reduced: "Scorer", exact: "Scorer") -> str:
    """Say how far the scores of a model in reduced precision lie from those of the same model in fp32."""
    passport = reduced.passport
    crops = simulated_cells(passport.input_px, passport.conversion, passport.pixel_um)
    change = np.abs(reduced.score(crops) - exact.score(crops))
    return (
        f"model {passport.model_id}: {passport.precision} changes the scores of {len(crops)} simulated cells by "
        f"{change.max():.4f} at most and {change.mean():.4f} on average"
    )


def simulated_cells(size_px: int, conversion: str, pixel_um: float | None = None) -> NDArray[np.uint8]:
    """Return crops (uint8 N×size×size) of the same few hundred cells each time, healthy and senescent ones."""
    fields = training_fields(_FIELDS, _SEED, shape=(512, 512), pixel_um=pixel_um or _PIXEL_UM)
    return np.concatenate(
        [crop_cells_at(to_uint8(field.pixels, conversion), field.centres, size_px)[0] for field in fields]
    )
