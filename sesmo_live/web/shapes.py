"""What requests and answers look like; with the frozen nouns of `overview` they make the OpenAPI page complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

Row = TypeVar("Row")
LARGEST = 2**31 - 1
"""The largest number of an image, a time point or a cell that is understood."""

PlateName = Annotated[
    str, Path(min_length=1, max_length=200, pattern=r"\S", description="name of a plate, in any case")
]
CompoundName = Annotated[str, Path(min_length=1, max_length=300, description="name or alias of a compound")]
WellName = Annotated[str, Path(min_length=2, max_length=10, description="a well in any spelling: b3, B03, AF48")]
ImageId = Annotated[int, Path(ge=1, le=LARGEST, description="number of an image")]
RunName = Annotated[str | None, Query(max_length=200, description="which run of the plate [the latest]")]
ModelName = Annotated[str | None, Query(max_length=200, description="model id or its beginning [the latest]")]
At = Annotated[int | None, Query(ge=-LARGEST, le=LARGEST, description="time point [the latest]")]


class Answered(StrEnum):
    """Forms of a table."""

    json = "json"
    csv = "csv"


FormatName = Annotated[Answered, Query(alias="format", description="json, or csv for a spreadsheet")]


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str


class Table(BaseModel, Generic[Row]):
    """Rows, and what must be said with them."""

    rows: Sequence[Row]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WellRow:
    """A line of `sesmo-live plate`."""

    well: str
    role: str
    compound: str
    dose: float | str | None
    dose_unit: str
    timepoint: int | None
    hours: float | None
    score: float | None
    ci_low: float | None
    ci_high: float | None
    n_cells: int
    fraction_senescent: float | None
    n_images: int
    model: str
    fraction_low: float | None
    fraction_high: float | None
    confluence: float | None
    percent_of_control: float | None
    robust_z: float | None
    b_score: float | None
    density_adjusted: float | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A line of `sesmo-live compound`."""

    compound: str
    plate: str
    run: str
    well: str
    role: str
    dose: float | None
    dose_unit: str
    dose_um: float | None
    timepoint: int
    acquired_at: datetime | None
    hours: float | None
    score: float | None
    ci_low: float | None
    ci_high: float | None
    n_cells: int
    fraction_senescent: float | None
    n_images: int
    model: str


@dataclass(frozen=True, slots=True)
class CompoundView:
    """A compound of the database."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model that has scored something; `demonstration` warns, "" for one fit for use."""

    model: str
    demonstration: str
    added_at: datetime
    passport: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RankedCell:
    """A cell of a well, with the number of its image; the cells come from the lowest score to the highest."""

    image_id: int
    idx: int
    score: float


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Retry(_Body):
    """Which failed images are tried again; what is given must all hold."""

    plate: str | None = Field(None, min_length=1, max_length=200, description="those of a plate, all its runs")
    images: list[Annotated[int, Field(ge=1, le=LARGEST)]] = Field(default_factory=list, max_length=10_000)
    reason: str | None = Field(None, min_length=1, max_length=500, description="those whose reason holds these words")
    everything: bool = Field(False, description="all of the database")


class Retried(BaseModel):
    """How many images will be tried again."""

    images: int


class Exclusion(_Body):
    """Why an image is taken out of its well."""

    reason: str = Field(min_length=1, max_length=500, pattern=r"\S")


class Health(BaseModel):
    """Whether all is well, and if not, why."""

    ok: bool
    reasons: tuple[str, ...]
