"""What the page and the API show, as frozen nouns; `overview` makes them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sesmo_live.records import WellScore


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images stand in each state; `total` sums these up.

    `excluded` ones, which a person took out of their wells, are among those of their state.
    """

    pending: int = 0
    scored: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    superseded: int = 0
    excluded: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class IncidentView:
    """One incident, open as long as `closed_at` is None; `plate` is the name of the plate that it is about, if any."""

    incident_id: int
    kind: str
    subject: str
    message: str
    plate: str
    opened_at: datetime
    closed_at: datetime | None
    acknowledged_at: datetime | None


@dataclass(frozen=True, slots=True)
class PlateSummary:
    """One run of a plate; `wells` is the plate's size (6 to 1536), `model` the latest that scored it, "" if none."""

    name: str
    run: str
    wells: int
    images: Counts
    first_at: datetime | None
    last_at: datetime | None
    model: str
    demonstration: str
    incidents: int


@dataclass(frozen=True, slots=True)
class TimePoint:
    """A stop of the time slider: hours since treatment, else since the plate's first image."""

    timepoint: int
    hours: float | None
    acquired_at: datetime | None


@dataclass(frozen=True, slots=True)
class WellOnMap:
    """One well as the map shows it, at its latest time point or at the one asked for.

    `flags` are among `refused`, `failed`, `stalled` and `alarm`; `focus` is the mean sharpness of its fields (log2,
    higher is sharper; see docs/refusal.md); `age_s` counts from when its last image was taken to now. From
    `fraction_low` to `density_adjusted` it stands beside the controls of its own time point (docs/statistics.md), None
    where that cannot be computed; the notes of the map say why. `dose` is text where a well holds several compounds.
    """

    well: str
    row: int
    column: int
    role: str
    compound: str
    dose: float | str | None
    dose_unit: str
    timepoint: int | None
    hours: float | None
    acquired_at: datetime | None
    score: float | None
    ci_low: float | None
    ci_high: float | None
    n_cells: int
    fraction_senescent: float | None
    n_images: int
    fraction_low: float | None
    fraction_high: float | None
    confluence: float | None
    percent_of_control: float | None
    robust_z: float | None
    b_score: float | None
    density_adjusted: float | None
    focus: float | None
    age_s: float | None
    refused: int
    failed: int
    excluded: int
    reasons: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlateMap:
    """A plate as a map: every well that was imaged or that holds something, and all stops of the time slider.

    `timepoint` is the one asked for, None for each well's latest; `demonstration` is a banner's text, "" for none.
    """

    name: str
    run: str
    runs: tuple[str, ...]
    plate_wells: int
    rows: int
    columns: int
    model: str
    demonstration: str
    timepoint: int | None
    timepoints: tuple[TimePoint, ...]
    wells: tuple[WellOnMap, ...]
    incidents: tuple[IncidentView, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ControlBand:
    """Mean and standard deviation of the negative control wells' scores at one time point; `sd` None for one well.

    `half_width` is that of the band, around the mean, which a well has to leave for an onset; None without one.
    """

    timepoint: int
    hours: float | None
    mean: float
    sd: float | None
    wells: int
    half_width: float | None


@dataclass(frozen=True, slots=True)
class Beside:
    """Where a well stands beside the controls of its time point; None where `notes` say why (docs/statistics.md)."""

    timepoint: int
    fraction_low: float | None
    fraction_high: float | None
    confluence: float | None
    percent_of_control: float | None
    robust_z: float | None
    b_score: float | None
    density_adjusted: float | None


@dataclass(frozen=True, slots=True)
class Departure:
    """When a well left the band of the negative controls, None if it did not; how fast it rises, what it adds up to."""

    looks: int
    onset_timepoint: int | None
    onset_hours: float | None
    direction: str | None
    slope_per_hour: float | None
    slope_low: float | None
    slope_high: float | None
    area_over_negative: float | None


@dataclass(frozen=True, slots=True)
class FieldView:
    """One image: `file` is its name alone, `reason` why it is not scored, `excluded` why a person took it out."""

    image_id: int
    well: str
    field: int | None
    timepoint: int | None
    channel: str
    z: int
    acquired_at: datetime | None
    state: str
    reason: str
    excluded: str
    file: str
    score: float | None
    n_cells: int
    quality: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WellView:
    """One well: its time course, the negative controls' band behind it, and the images of one time point.

    `timepoints` are all of which it has images, scored or not; `compounds` the names that `compound` joins. `departure`
    is None without a score.
    """

    plate: str
    run: str
    well: str
    role: str
    compound: str
    compounds: tuple[str, ...]
    dose: float | str | None
    dose_unit: str
    model: str
    demonstration: str
    scores: tuple[WellScore, ...]
    controls: tuple[ControlBand, ...]
    departure: Departure | None
    timepoint: int | None
    timepoints: tuple[int, ...]
    fields: tuple[FieldView, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CellView:
    """One cell; x and y in pixels of the image as it was read."""

    idx: int
    x: float
    y: float
    score: float


@dataclass(frozen=True, slots=True)
class FieldCells:
    """The cells of one image under one model, "" if none has scored it."""

    field: FieldView
    plate: str
    run: str
    model: str
    demonstration: str
    threshold: float | None
    cells: tuple[CellView, ...]


@dataclass(frozen=True, slots=True)
class FolderView:
    """A watched folder as its daemon last spoke of it; `beat_age_s` and `scan_age_s` are seconds until now."""

    name: str
    mode: str
    trouble: str
    beat_age_s: float
    scan_age_s: float | None
    alive: bool


@dataclass(frozen=True, slots=True)
class LastImage:
    """The image that was scored last."""

    image_id: int
    plate: str
    run: str
    well: str
    field: int | None
    timepoint: int | None
    scored_at: datetime
    file: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How the run goes.

    Rates are over the last `window_s` seconds; `seconds_to_score` is the median from first sighting to score of the
    last images. Disk figures are of the database's disk, None for a server.
    """

    images: Counts
    cells: int
    queue: int
    window_s: float
    images_per_s: float
    cells_per_s: float
    seconds_to_score: float | None
    last_image: LastImage | None
    folders: tuple[FolderView, ...]
    incidents: tuple[IncidentView, ...]
    disk_free_bytes: int | None
    disk_total_bytes: int | None
