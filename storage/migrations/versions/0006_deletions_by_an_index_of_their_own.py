"""What is due to be deleted has an index of its own, apart from all else that is due."""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | Sequence[str] | None = "0005"


def upgrade() -> None:
    """Bring the schema to this revision."""
    # What dropping an index takes in the end; taken at once, nobody waits for whom we wait for.
    op.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
    op.execute("DROP INDEX tasks_due_at")
    op.execute("CREATE INDEX tasks_due_at ON tasks (due_at) WHERE due_at IS NOT NULL AND delete_at IS NULL")
    op.execute("CREATE INDEX tasks_delete_at ON tasks (delete_at) WHERE delete_at IS NOT NULL")
