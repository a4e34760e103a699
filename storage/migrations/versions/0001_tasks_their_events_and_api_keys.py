"""Tasks, their events, and API keys."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | Sequence[str] | None = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("permissions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("api_keys_pkey")),
    )
    op.create_index(
        op.f("api_keys_name"), "api_keys", ["name"], unique=True, postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.create_table(
        "task_events",
        sa.Column("task_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("idempotency_key", sa.Text(collation="C"), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "event_type IN ('LOG', 'PROGRESS', 'ERROR', 'SUCCESS')", name=op.f("task_events_event_type")
        ),
        sa.CheckConstraint("(idempotency_key IS NULL) = (fingerprint IS NULL)", name=op.f("task_events_fingerprint")),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name=op.f("task_events_progress")),
        sa.CheckConstraint("seq >= 1", name=op.f("task_events_seq")),
        sa.PrimaryKeyConstraint("task_id", "seq", name=op.f("task_events_pkey")),
    )
    op.create_index(
        op.f("task_events_task_id_idempotency_key"),
        "task_events",
        ["task_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("canceled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(status = 'CANCELED') = (canceled_at IS NOT NULL)", name=op.f("tasks_canceled_at")),
        sa.CheckConstraint("(status = 'FAILED') = (failed_at IS NOT NULL)", name=op.f("tasks_failed_at")),
        sa.CheckConstraint("(status = 'SUCCESS') = (completed_at IS NOT NULL)", name=op.f("tasks_completed_at")),
        sa.CheckConstraint("status <> 'IN_PROGRESS' OR started_at IS NOT NULL", name=op.f("tasks_started_at")),
        sa.CheckConstraint(
            "status IN ('PENDING', 'IN_PROGRESS', 'SUCCESS', 'FAILED', 'CANCELED')", name=op.f("tasks_status")
        ),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name=op.f("tasks_progress")),
        sa.CheckConstraint("seq >= 1", name=op.f("tasks_seq")),
        sa.CheckConstraint("updated_at >= created_at", name=op.f("tasks_updated_at")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("tasks_pkey")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(op.f("tasks_created_at_task_id"), "tasks", ["created_at", "task_id"], unique=False)
    op.create_index(op.f("tasks_status_created_at_task_id"), "tasks", ["status", "created_at", "task_id"], unique=False)
