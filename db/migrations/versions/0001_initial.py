"""The first schema: plates, treatments, images, models, scores, incidents, and the well_score view.

Revision: 0001, after None
"""

import sqlalchemy as sa
from alembic import op

from db.schema import UtcDateTime

revision = "0001"
down_revision = None

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
WHERE i.state = 'scored'
GROUP BY i.plate_id, i.well, i.timepoint, f.model_id
"""


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "compound",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compound")),
        sa.UniqueConstraint("key", name=op.f("uq_compound_key")),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.String(length=200), nullable=False),
        sa.Column("demonstration", sa.Text(), nullable=False),
        sa.Column("passport", sa.JSON(), nullable=False),
        sa.Column("added_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("model_id", name=op.f("uq_model_model_id")),
    )
    op.create_table(
        "plate",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("run", sa.String(length=200), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("layout", sa.String(length=40), nullable=False),
        sa.Column("wells", sa.Integer(), nullable=True),
        sa.Column("channel", sa.String(), nullable=True),
        sa.Column("z", sa.Integer(), nullable=True),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("channels", sa.JSON(), nullable=False),
        sa.Column("planes", sa.JSON(), nullable=False),
        sa.Column("frame_interval_s", sa.Double(), nullable=True),
        sa.Column("treated_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plate")),
        sa.UniqueConstraint("key", "run", name=op.f("uq_plate_key")),
    )
    op.create_table(
        "compound_alias",
        sa.Column("key", sa.String(length=300), nullable=False),
        sa.Column("compound_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=300), nullable=False),
        sa.ForeignKeyConstraint(["compound_id"], ["compound.id"], name=op.f("fk_compound_alias_compound_id_compound")),
        sa.PrimaryKeyConstraint("key", "compound_id", name=op.f("pk_compound_alias")),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
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
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("leased_by", sa.String(length=100), nullable=True),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("done_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("state = 'scored' OR reason <> ''", name=op.f("ck_image_reason")),
        sa.CheckConstraint(
            "state IN ('pending', 'scored', 'refused', 'failed', 'skipped', 'superseded')", name=op.f("ck_image_state")
        ),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name=op.f("fk_image_plate_id_plate")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("path", "page", "generation", name=op.f("uq_image_path")),
    )
    op.create_index("ix_image_place", "image", ["plate_id", "well", "timepoint"], unique=False)
    op.create_index("ix_image_file", "image", ["name", "size", "mtime_ns"], unique=False)
    op.create_index(
        "uq_image_site",
        "image",
        ["plate_id", "well", "field", "timepoint", "channel", "z"],
        unique=True,
        sqlite_where=sa.text("state = 'scored'"),
        postgresql_where=sa.text("state = 'scored'"),
    )
    op.create_table(
        "incident",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("plate_id", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("opened_at", UtcDateTime(), nullable=False),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("acknowledged_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name=op.f("fk_incident_plate_id_plate")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incident")),
    )
    op.create_table(
        "well_treatment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("plate_id", sa.Integer(), nullable=False),
        sa.Column("well", sa.String(length=4), nullable=False),
        sa.Column("compound_id", sa.Integer(), nullable=True),
        sa.Column("role", sa.String(length=12), nullable=False),
        sa.Column("dose", sa.Double(), nullable=True),
        sa.Column("dose_unit", sa.String(length=20), nullable=False),
        sa.Column("dose_um", sa.Double(), nullable=True),
        sa.Column("treated_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["compound_id"], ["compound.id"], name=op.f("fk_well_treatment_compound_id_compound")),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name=op.f("fk_well_treatment_plate_id_plate")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_well_treatment")),
        sa.UniqueConstraint("plate_id", "well", "compound_id", name=op.f("uq_well_treatment_plate_id")),
    )
    op.create_index("ix_well_treatment_c", "well_treatment", ["compound_id"], unique=False)
    op.create_table(
        "cell",
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("x", sa.Double(), nullable=False),
        sa.Column("y", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_cell_image_id_image")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_cell_model_id_model")),
        sa.PrimaryKeyConstraint("image_id", "model_id", "idx", name=op.f("pk_cell")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "field_score",
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("sum", sa.Double(), nullable=False),
        sa.Column("sum_sq", sa.Double(), nullable=False),
        sa.Column("n_over", sa.Integer(), nullable=False),
        sa.Column("histogram", sa.JSON(), nullable=False),
        sa.Column("quality", sa.JSON(), nullable=False),
        sa.Column("scored_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_field_score_image_id_image")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_field_score_model_id_model")),
        sa.PrimaryKeyConstraint("image_id", "model_id", name=op.f("pk_field_score")),
    )
    op.execute(WELL_SCORE_VIEW)


def downgrade() -> None:
    """Drop everything."""
    op.execute("DROP VIEW well_score")
    op.drop_table("field_score")
    op.drop_table("cell")
    op.drop_index("ix_well_treatment_c", table_name="well_treatment")
    op.drop_table("well_treatment")
    op.drop_table("incident")
    op.drop_index(
        "uq_image_site",
        table_name="image",
        sqlite_where=sa.text("state = 'scored'"),
        postgresql_where=sa.text("state = 'scored'"),
    )
    op.drop_index("ix_image_place", table_name="image")
    op.drop_index("ix_image_file", table_name="image")
    op.drop_table("image")
    op.drop_table("compound_alias")
    op.drop_table("plate")
    op.drop_table("model")
    op.drop_table("compound")
