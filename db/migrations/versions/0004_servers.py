"""Whose path it is, so that many daemons write one database; PostgreSQL's types made as wide as SQLite's.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

from db.schema import WELL_SCORE_VIEW, UtcDateTime

revision = "0004"
down_revision = "0003"

NUMBERS = (("image", "page"), ("image", "field"), ("image", "z"), ("plate", "z"))
"""Columns whose numbers come from names of files."""

COLUMNS = (
    "id path name page generation plate_id well field timepoint channel z size mtime_ns acquired_at acquired_from "
    "pixel_um stage_x_um stage_y_um sha256 state reason excluded attempts next_attempt_at seen_at done_at"
)
INDEXES = (
    ("ix_image_place", "plate_id well state timepoint", None),
    ("ix_image_file", "name size mtime_ns", None),
    ("ix_image_asked", "next_attempt_at", "next_attempt_at IS NOT NULL"),
    ("uq_image_site", "plate_id well field timepoint channel z", "state = 'scored'"),
    ("ix_image_shown", "plate_id state timepoint well acquired_at", None),
    ("ix_image_first", "plate_id acquired_at", "state = 'scored'"),
    ("ix_image_stops", "plate_id timepoint acquired_at", "state = 'scored'"),
    ("ix_image_apart", "plate_id state timepoint well", "reason > ''"),
    ("ix_image_excluded", "plate_id excluded", "excluded > ''"),
    ("ix_image_plate", "plate_id id", None),
)


def upgrade() -> None:
    """Add `source` to images and plates and `daemon` to watched_folder; drop the lease columns, never used."""
    op.execute("DROP VIEW well_score")
    op.add_column("plate", sa.Column("source", sa.Text(), nullable=False, server_default=""))
    _upgrade_folders()
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_images()
    else:
        _upgrade_server()
    op.execute(WELL_SCORE_VIEW)


def _upgrade_folders() -> None:
    op.drop_table("watched_folder")  # what a daemon says anew at its start
    op.create_table(
        "watched_folder",
        sa.Column("daemon", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("beat_at", UtcDateTime(), nullable=False),
        sa.Column("scanned_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("daemon", "path", name=op.f("pk_watched_folder")),
    )


def _rebuild_images() -> None:
    """SQLite cannot change a table's unique key: make a new table and let it take the old one's place."""
    op.create_table(
        "image_new",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, server_default=""),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("plate_id", sa.Integer(), nullable=True),
        sa.Column("well", sa.String(length=4), nullable=True),
        sa.Column("field", sa.Integer(), nullable=True),
        sa.Column("timepoint", sa.BigInteger(), nullable=True),
        sa.Column("channel", sa.String(length=100), nullable=False),
        sa.Column("z", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("acquired_at", UtcDateTime(), nullable=True),
        sa.Column("acquired_from", sa.String(length=20), nullable=False),
        sa.Column("pixel_um", sa.Double(), nullable=True),
        sa.Column("stage_x_um", sa.Double(), nullable=True),
        sa.Column("stage_y_um", sa.Double(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("excluded", sa.Text(), nullable=False, server_default=""),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("done_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("state = 'scored' OR reason <> ''", name=op.f("ck_image_reason")),
        sa.CheckConstraint(
            "state IN ('pending', 'scored', 'refused', 'failed', 'skipped', 'superseded')", name=op.f("ck_image_state")
        ),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name=op.f("fk_image_plate_id_plate")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("source", "path", "page", "generation", name=op.f("uq_image_path")),
    )
    columns = ", ".join(COLUMNS.split())
    op.execute(f"INSERT INTO image_new ({columns}) SELECT {columns} FROM image ORDER BY id")
    op.drop_table("image")
    op.rename_table("image_new", "image")
    for name, names, where in INDEXES:
        partial = None if where is None else sa.text(where)
        op.create_index(name, "image", names.split(), unique=name.startswith("uq"), sqlite_where=partial)


def _upgrade_server() -> None:
    op.drop_column("image", "leased_by")
    op.drop_column("image", "leased_until")
    op.add_column("image", sa.Column("source", sa.Text(), nullable=False, server_default=""))
    op.drop_constraint("uq_image_path", "image", type_="unique")
    op.create_unique_constraint("uq_image_path", "image", ["source", "path", "page", "generation"])
    for constraint in ("fk_cell_image_id_image", "fk_cell_model_id_model"):
        op.drop_constraint(constraint, "cell", type_="foreignkey")
    inspector = sa.inspect(op.get_bind())
    for table in inspector.get_table_names():
        for column in inspector.get_columns(table) if table != "alembic_version" else ():
            if isinstance(column["type"], sa.VARCHAR):
                op.alter_column(table, column["name"], type_=sa.Text())
    for table, name in (*NUMBERS, ("watched_folder", "pid")):
        op.alter_column(table, name, type_=sa.BigInteger())
