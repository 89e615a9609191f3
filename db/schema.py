"""The tables: what is remembered of plates, images, models and scores."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

STATES = ("pending", "scored", "refused", "failed", "skipped", "superseded")
SHARED = "*"
"""Whose the paths of a shared folder are: every daemon's. The empty name is that of a SQLite file, which has one."""

HISTOGRAM_BINS = 32
"""Bins of equal width over [0, 1] in a field's score histogram."""

BigKey = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER keys count up by themselves in SQLite
# SQLite keeps text and numbers of any length whatever their type; PostgreSQL takes its types at their word.
Number = Integer().with_variant(BigInteger(), "postgresql")


def short_text(length: int | None = None) -> String:
    """Return the type of text that is rarely longer than `length` letters, and no database may refuse if it is."""
    return String(length).with_variant(Text(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: aware in Python, naive UTC in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Turn an aware time into naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Turn naive UTC into an aware time."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The declarative base; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, list[int]: JSON}  # noqa: RUF012 — SQLAlchemy's own


class Plate(Base):
    """One run of one plate: the same name imaged again on another date is another run; `key` is case-folded."""

    __tablename__ = "plate"
    __table_args__ = (UniqueConstraint("key", "run"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(short_text(200))
    key: Mapped[str] = mapped_column(short_text(200))
    run: Mapped[str] = mapped_column(short_text(200))
    source: Mapped[str] = mapped_column(Text, default="", server_default="")  # whose paths, as in `image`
    folder: Mapped[str] = mapped_column(Text, default="")
    layout: Mapped[str] = mapped_column(short_text(40), default="")
    wells: Mapped[int | None]
    channel: Mapped[str | None] = mapped_column(short_text())
    z: Mapped[int | None] = mapped_column(Number)
    choice: Mapped[str] = mapped_column(Text, default="")  # why this channel and this focal plane, in words
    channels: Mapped[dict[str, Any]]  # channel: its human label, of all that were met
    planes: Mapped[list[int]]  # focal planes that were met
    frame_interval_s: Mapped[float | None]
    treated_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Compound(Base):
    """A substance under the name it was first met by; `key` is that name case-folded."""

    __tablename__ = "compound"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(short_text(300))
    key: Mapped[str] = mapped_column(short_text(300), unique=True)


class CompoundAlias(Base):
    """Another name of a compound (a vendor's number, an InChIKey); `key` is case-folded."""

    __tablename__ = "compound_alias"

    key: Mapped[str] = mapped_column(short_text(300), primary_key=True)
    compound_id: Mapped[int] = mapped_column(ForeignKey("compound.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(short_text(300))


class WellTreatment(Base):
    """One compound in one well of one plate; a well may hold several, or none (a blank)."""

    __tablename__ = "well_treatment"
    __table_args__ = (UniqueConstraint("plate_id", "well", "compound_id"), Index("ix_well_treatment_c", "compound_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    plate_id: Mapped[int] = mapped_column(ForeignKey("plate.id"))
    well: Mapped[str] = mapped_column(short_text(4))
    compound_id: Mapped[int | None] = mapped_column(ForeignKey("compound.id"))
    role: Mapped[str] = mapped_column(short_text(12))
    dose: Mapped[float | None]
    dose_unit: Mapped[str] = mapped_column(short_text(20), default="")
    dose_um: Mapped[float | None]
    treated_at: Mapped[datetime | None]


class Image(Base):
    """The ledger and the queue: one row for every page of every file that was ever seen."""

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("source", "path", "page", "generation", name="uq_image_path"),
        CheckConstraint(f"state IN {STATES}", name="state"),
        CheckConstraint("state = 'scored' OR reason <> ''", name="reason"),
        Index("ix_image_place", "plate_id", "well", "state", "timepoint"),
        Index("ix_image_file", "name", "size", "mtime_ns"),  # finds a file again that was moved
        Index(  # finds what was asked to be tried again
            "ix_image_asked",
            "next_attempt_at",
            sqlite_where=text("next_attempt_at IS NOT NULL"),
            postgresql_where=text("next_attempt_at IS NOT NULL"),
        ),
        # The database itself refuses to count one site of one plate twice.
        Index(
            "uq_image_site",
            *("plate_id", "well", "field", "timepoint", "channel", "z"),
            unique=True,
            sqlite_where=text("state = 'scored'"),
            postgresql_where=text("state = 'scored'"),
        ),
        # By these a plate is shown at once, however many images it has.
        Index("ix_image_shown", "plate_id", "state", "timepoint", "well", "acquired_at"),
        Index(
            "ix_image_first",
            *("plate_id", "acquired_at"),
            sqlite_where=text("state = 'scored'"),
            postgresql_where=text("state = 'scored'"),
        ),
        Index(
            "ix_image_stops",
            *("plate_id", "timepoint", "acquired_at"),
            sqlite_where=text("state = 'scored'"),
            postgresql_where=text("state = 'scored'"),
        ),
        Index(
            "ix_image_apart",
            *("plate_id", "state", "timepoint", "well"),
            sqlite_where=text("reason > ''"),
            postgresql_where=text("reason > ''"),
        ),
        Index(
            "ix_image_excluded",
            *("plate_id", "excluded"),
            sqlite_where=text("excluded > ''"),
            postgresql_where=text("excluded > ''"),
        ),
        Index("ix_image_plate", "plate_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    source: Mapped[str] = mapped_column(Text, default="", server_default="")  # whose path it is: a daemon's, SHARED
    path: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)  # the last part of the path
    page: Mapped[int] = mapped_column(Number)
    generation: Mapped[int] = mapped_column(default=1)
    plate_id: Mapped[int | None] = mapped_column(ForeignKey("plate.id"))
    well: Mapped[str | None] = mapped_column(short_text(4))
    field: Mapped[int | None] = mapped_column(Number)
    timepoint: Mapped[int | None] = mapped_column(BigInteger)
    channel: Mapped[str] = mapped_column(short_text(100), default="")
    z: Mapped[int] = mapped_column(Number, default=0)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    acquired_at: Mapped[datetime | None]
    acquired_from: Mapped[str] = mapped_column(short_text(20), default="file")
    pixel_um: Mapped[float | None]
    stage_x_um: Mapped[float | None]
    stage_y_um: Mapped[float | None]
    sha256: Mapped[str | None] = mapped_column(short_text(64))  # of the decoded pixels
    state: Mapped[str] = mapped_column(short_text(10))
    reason: Mapped[str] = mapped_column(Text, default="")
    excluded: Mapped[str] = mapped_column(Text, default="", server_default="")  # why a person took it out of its well
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None]
    seen_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class Model(Base):
    """A model that has scored something, with its whole passport."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(short_text(200), unique=True)
    demonstration: Mapped[str] = mapped_column(Text, default="")
    passport: Mapped[dict[str, Any]]
    added_at: Mapped[datetime]


class FieldScore(Base):
    """The scores of one image under one model, summed up; `n_over` counts cells above the model's threshold."""

    __tablename__ = "field_score"
    __table_args__ = (
        Index("ix_field_score_sums", "model_id", "image_id", "n", "sum", "sum_sq", "n_over"),  # all that a well needs
        Index("ix_field_score_at", "scored_at"),
    )

    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"), primary_key=True)
    n: Mapped[int]
    sum: Mapped[float]
    sum_sq: Mapped[float]
    n_over: Mapped[int]
    histogram: Mapped[list[int]]
    quality: Mapped[dict[str, Any]]
    scored_at: Mapped[datetime]


class Cell(Base):
    """One cell of one image under one model; x and y in image pixels."""

    __tablename__ = "cell"
    # On PostgreSQL checking the references takes longer than all else about a cell; it is written with its field alone.
    __table_args__ = (
        ForeignKeyConstraint(["image_id"], ["image.id"]).ddl_if("sqlite"),
        ForeignKeyConstraint(["model_id"], ["model.id"]).ddl_if("sqlite"),
        {"sqlite_with_rowid": False},
    )

    image_id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    model_id: Mapped[int] = mapped_column(primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[float]
    y: Mapped[float]
    score: Mapped[float]


class Incident(Base):
    """Something the user should know of: a stall, a share gone, too many failures."""

    __tablename__ = "incident"

    id: Mapped[int] = mapped_column(primary_key=True)
    plate_id: Mapped[int | None] = mapped_column(ForeignKey("plate.id"))
    kind: Mapped[str] = mapped_column(short_text(40))
    subject: Mapped[str] = mapped_column(Text, default="")  # the folder or plate that it is about
    message: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]]
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    acknowledged_at: Mapped[datetime | None]


class WatchedFolder(Base):
    """What a daemon last said of one of its folders, so that other processes can tell whether it lives and watches."""

    __tablename__ = "watched_folder"

    daemon: Mapped[str] = mapped_column(Text, primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Number)
    host: Mapped[str] = mapped_column(short_text(200))
    mode: Mapped[str] = mapped_column(Text)  # how it is watched, in words
    trouble: Mapped[str] = mapped_column(Text, default="")  # why it is not worked on now, in words
    started_at: Mapped[datetime]
    beat_at: Mapped[datetime]
    scanned_at: Mapped[datetime | None]


# Sums over the fields of a well, enough for mean and interval without touching the cells:
# n and s are a field's cells and their summed scores.
WELL_SCORE_VIEW = """
CREATE VIEW well_score AS
SELECT i.plate_id, i.well, i.timepoint, f.model_id,
       COUNT(*) AS n_images, SUM(f.n) AS n_cells,
       SUM(f.sum) AS score_sum, SUM(f.sum_sq) AS score_sum_sq, SUM(f.n_over) AS n_over,
       SUM(CASE WHEN f.n > 0 THEN 1 ELSE 0 END) AS n_fields,
       SUM(f.sum * f.sum) AS field_ss, SUM(f.sum * f.n) AS field_sn,
       SUM(CAST(f.n AS DOUBLE PRECISION) * f.n) AS field_nn,
       MIN(i.acquired_at) AS acquired_at,
       SUM(CASE WHEN i.acquired_from = 'file' THEN 1 ELSE 0 END) AS n_file_times
FROM image AS i JOIN field_score AS f ON f.image_id = i.id
WHERE i.state = 'scored' AND i.excluded = ''
GROUP BY i.plate_id, i.timepoint, i.well, f.model_id
"""
