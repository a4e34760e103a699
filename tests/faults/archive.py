"""What the tables forget, kept beside them: deleted tasks with their events, the
steps of plans that are no events, and each state in which a task ever was.

Triggers write it down in the transaction that does it, so it is as true as the tables are.
"""

from typing import Final

from tests.postgres import session

_STATEMENTS: Final = """
CREATE TABLE archived_tasks (LIKE tasks);
ALTER TABLE archived_tasks ADD died_at timestamptz;
CREATE TABLE archived_events (LIKE task_events);
CREATE TABLE archived_steps (
    number bigserial PRIMARY KEY,
    task_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    ready boolean NOT NULL,
    begins_at timestamptz,
    lease_expires_at timestamptz
);
CREATE TABLE archived_states (
    number bigserial PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    died boolean NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    status text NOT NULL,
    progress integer NOT NULL,
    updated_at timestamptz NOT NULL,
    queue text,
    tags text[]
);
CREATE FUNCTION archive_state() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    task tasks := coalesce(NEW, OLD);
BEGIN
    INSERT INTO archived_states (died, task_id, created_at, seq, status, progress, updated_at, queue, tags) VALUES (
        NEW IS NULL, task.task_id, task.created_at, task.seq, task.status, task.progress, task.updated_at,
        task.queue, task.tags
    );
    RETURN NULL;
END $$;
CREATE FUNCTION archive_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO archived_tasks SELECT OLD.*, clock_timestamp();
    RETURN NULL;
END $$;
CREATE FUNCTION archive_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO archived_events SELECT OLD.*;
    RETURN NULL;
END $$;
CREATE FUNCTION archive_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO archived_steps (task_id, seq, at, ready, begins_at, lease_expires_at) VALUES (
        NEW.task_id, NEW.seq, clock_timestamp(), NEW.ready,
        greatest(NEW.start_at, NEW.next_attempt_at), NEW.lease_expires_at
    );
    RETURN NULL;
END $$;
CREATE TRIGGER archive AFTER DELETE ON tasks FOR EACH ROW WHEN (OLD.max_attempts IS NOT NULL)
    EXECUTE FUNCTION archive_task();
CREATE TRIGGER archive AFTER DELETE ON task_events FOR EACH ROW EXECUTE FUNCTION archive_event();
CREATE TRIGGER archive_steps AFTER UPDATE ON tasks FOR EACH ROW
    WHEN ((OLD.ready, OLD.lease_expires_at) IS DISTINCT FROM (NEW.ready, NEW.lease_expires_at))
    EXECUTE FUNCTION archive_step();
CREATE TRIGGER archive_births AFTER INSERT OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION archive_state();
CREATE TRIGGER archive_changes AFTER UPDATE ON tasks FOR EACH ROW WHEN (OLD.seq IS DISTINCT FROM NEW.seq)
    EXECUTE FUNCTION archive_state();
"""


async def keep_archive(url: str) -> None:
    """From now on, keep what the tables of this database forget."""
    async with session(url) as connection:
        await connection.execute(_STATEMENTS)
