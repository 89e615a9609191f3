"""What an incident is about, and what the daemon says of its folders.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

from db.schema import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add incident.subject, an index of images asked to be tried again, and watched_folder."""
    op.add_column("incident", sa.Column("subject", sa.Text(), nullable=False, server_default=""))
    asked = sa.text("next_attempt_at IS NOT NULL")
    op.create_index("ix_image_asked", "image", ["next_attempt_at"], sqlite_where=asked, postgresql_where=asked)
    op.create_table(
        "watched_folder",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("beat_at", UtcDateTime(), nullable=False),
        sa.Column("scanned_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_watched_folder")),
    )
