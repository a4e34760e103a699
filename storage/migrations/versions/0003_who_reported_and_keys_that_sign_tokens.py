"""Who reported an event, and keys that sign task tokens."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "signing_keys",
        sa.Column("key_id", sa.Text(collation="C"), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("signing_keys_pkey")),
    )
    op.add_column("task_events", sa.Column("actor", sa.Text(), nullable=True))
