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
    partial("ix_image_first", ["plate_id", "acquired_at"], "state = 'scored'")
    partial("ix_image_stops", ["plate_id", "timepoint", "acquired_at"], "state = 'scored'")
    partial("ix_image_apart", ["plate_id", "state", "timepoint", "well"], "reason > ''")
    partial("ix_image_excluded", ["plate_id", "excluded"], "excluded > ''")
    op.create_index("ix_image_plate", "image", ["plate_id", "id"])
    sums = ["model_id", "image_id", "n", "sum", "sum_sq", "n_over"]
    op.create_index("ix_field_score_sums", "field_score", sums)
    op.create_index("ix_field_score_at", "field_score", ["scored_at"])


def partial(name: str, columns: list[str], where: str) -> None:
    """Make an index of some of the images."""
    op.create_index(name, "image", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
