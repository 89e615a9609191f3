"""Fields that a person takes out of their well, and indexes by which a plate is shown at once.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

from db.schema import WELL_SCORE_VIEW

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add image.excluded, make well_score leave such images out, and add indexes for reading."""
    op.execute("DROP VIEW well_score")
    op.add_column("image", sa.Column("excluded", sa.Text(), nullable=False, server_default=""))
    op.execute(WELL_SCORE_VIEW)
    op.create_index("ix_image_shown", "image", ["plate_id", "state", "timepoint", "well", "acquired_at"])
    op.drop_index("ix_image_place", table_name="image")
    op.create_index("ix_image_place", "image", ["plate_id", "well", "state", "timepoint"])
    scored, apart = sa.text("state = 'scored'"), sa.text("reason <> '' OR excluded <> ''")
    op.create_index(
        "ix_image_first", "image", ["plate_id", "acquired_at"], sqlite_where=scored, postgresql_where=scored
    )
    op.create_index(
        "ix_image_apart", "image", ["plate_id", "state", "timepoint"], sqlite_where=apart, postgresql_where=apart
    )
    op.create_index("ix_image_plate", "image", ["plate_id", "id"])
    sums = ["model_id", "image_id", "n", "sum", "sum_sq", "n_over"]
    op.create_index("ix_field_score_sums", "field_score", sums)
    op.create_index("ix_field_score_at", "field_score", ["scored_at"])
