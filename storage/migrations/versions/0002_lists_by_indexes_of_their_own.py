"""Lists by indexes of their own."""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"


def upgrade() -> None:
    """Bring the schema to this revision."""
    ops = {"task_id": 'COLLATE "POSIX"'}
    for name, columns in (
        ("tasks_created_at_task_id", ["created_at", "task_id"]),
        ("tasks_status_created_at_task_id", ["status", "created_at", "task_id"]),
    ):
        op.drop_index(op.f(name), table_name="tasks")
        op.create_index(op.f(name), "tasks", columns, postgresql_ops=ops)
