"""Plans of tasks, who waits for whom, and who does what is done by one process at a time."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"

_TIME = sa.DateTime(timezone=True)
_COLUMNS = {
    "tags": postgresql.ARRAY(sa.Text()),
    "queue": sa.Text(collation="C"),
    "priority": sa.Integer(),
    "start_at": _TIME,
    "depends_on": postgresql.ARRAY(sa.Text()),
    "on_dependency_failure": sa.Text(),
    "max_attempts": sa.Integer(),
    "retry_initial_s": sa.Integer(),
    "retry_max_s": sa.Integer(),
    "retry_factor": sa.Double(),
    "expires_at": _TIME,
    "keep_for_s": sa.Integer(),
    "blocked_by": postgresql.ARRAY(sa.Text()),
    "attempt": sa.Integer(),
    "next_attempt_at": _TIME,
    "ready": sa.Boolean(),
    "worker": sa.Text(),
    "lease_expires_at": _TIME,
    "lease_token": sa.Text(),
    "delete_at": _TIME,
    "due_at": _TIME,
    "depended_on": sa.Boolean(),
}
_CHECKS = {
    "plan": (
        "num_nulls(tags, priority, depends_on, on_dependency_failure, max_attempts, retry_initial_s, retry_max_s,"
        " retry_factor, blocked_by, attempt, ready) IN (0, 11)"
    ),
    "attempt": "attempt BETWEEN 0 AND max_attempts",
    "attempts_left": "status <> 'PENDING' OR attempt < max_attempts",
    "ready": "NOT ready OR (status = 'PENDING' AND queue IS NOT NULL AND blocked_by = '{}')",
    "worker": "num_nulls(worker, lease_expires_at) IN (0, 2)",
    "lease": "lease_expires_at IS NULL OR (status = 'IN_PROGRESS' AND lease_token IS NOT NULL)",
}
_ENDED_AT = "COALESCE(completed_at, failed_at, canceled_at)"


def upgrade() -> None:
    """Bring the schema to this revision."""
    # In one statement, so that a large table is looked through once: no row is written, and none breaks a rule.
    changes = [
        *(f"ADD COLUMN {name} {_type(kind)}" for name, kind in _COLUMNS.items()),
        *(f"ADD CONSTRAINT tasks_{name} CHECK ({rule})" for name, rule in _CHECKS.items()),
    ]
    op.execute(f"ALTER TABLE tasks {', '.join(changes)}")
    op.create_index(
        "tasks_ready",
        "tasks",
        ["queue", sa.text("priority DESC"), "created_at", "task_id"],
        postgresql_where=sa.text("ready"),
    )
    op.create_index("tasks_due_at", "tasks", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))
    op.create_index(
        "tasks_ended_at",
        "tasks",
        [sa.text(f"({_ENDED_AT})")],
        postgresql_where=sa.text(f"keep_for_s IS NULL AND {_ENDED_AT} IS NOT NULL"),
    )
    op.create_table(
        "task_dependencies",
        sa.Column("task_id", sa.Text(collation="C"), nullable=False),
        sa.Column("dependent_id", sa.Text(collation="C"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('SUCCESS', 'FAILED', 'CANCELED', 'DELETED')", name=op.f("task_dependencies_outcome")
        ),
        sa.PrimaryKeyConstraint("task_id", "dependent_id", name=op.f("task_dependencies_pkey")),
    )
    op.create_index(
        "task_dependencies_untaken",
        "task_dependencies",
        ["outcome"],
        postgresql_where=sa.text("outcome IS NOT NULL"),
    )
    op.create_table(
        "duties",
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("duties_pkey")),
    )


def _type(kind: Any) -> str:
    return str(kind.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
