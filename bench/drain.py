"""Workers that drain a queue: each claims a task, reports progress on it, completes it, and claims the next.

* ``python -m bench.drain storage URL POSTMASTER`` has 32 of them ask the storage until the queue is empty
* ``python -m bench.drain loop URL POSTMASTER SECONDS`` has as many do the same by the driver alone, with a connection
  each and a transaction for each step

Both print what it took. What it takes over HTTP is measured by ``orchestration``.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import asyncpg
import uvloop

from bench.database import connect
from bench.processes import Cost
from storage import Complete, UpdateProgress, open_storage

WORKERS: Final = 32
QUEUE: Final = "bench"
PROGRESS: Final = 50
_LEASE_S: Final = 60

Drain: TypeAlias = Callable[[str], Awaitable[bool]]
"""Claim a task for a worker, report on it and complete it; False when there was none."""


@dataclass(slots=True)
class Drained:
    """What workers did."""

    # From the wish for a task to its end, of each.
    took_s: list[float] = field(default_factory=list)

    def figures(self, cost: Cost, cpu_s: float) -> dict[str, float]:
        """What it took; the steps are three times as many."""
        tasks = len(self.took_s)
        return {
            "per_s": tasks / cost.seconds,
            "p50_ms": 1e3 * quantile(self.took_s, 0.5),
            "p99_ms": 1e3 * quantile(self.took_s, 0.99),
            "cpu_us": cpu_s / tasks * 1e6,
            "postgres_us": cost.postgres_s / tasks * 1e6,
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def drain(ways: Sequence[Drain], until: float | None = None) -> Drained:
    """Let a worker go each of the ways until there is nothing left, or until some time by ``time.perf_counter``."""
    drained = Drained()

    async def work(number: int, way: Drain) -> None:
        while until is None or time.perf_counter() < until:
            began = time.perf_counter()
            if not await way(f"worker {number}"):
                break
            drained.took_s.append(time.perf_counter() - began)

    await asyncio.gather(*(work(number, way) for number, way in enumerate(ways)))
    return drained


async def _by_storage(url: str, postmaster: int) -> dict[str, float]:
    async with open_storage(url, upgrade=False, feed_url=url) as storage:

        async def way(worker: str) -> bool:
            for claim in await storage.claimer.claim(QUEUE, worker, lease_s=_LEASE_S):
                task_id, token = claim.task.task_id, claim.token
                await storage.writer.submit(UpdateProgress(task_id=task_id, progress=PROGRESS, token=token))
                await storage.writer.submit(Complete(task_id=task_id, token=token))
                return True
            return False

        own = time.process_time()
        with Cost(None, postmaster) as cost:
            drained = await drain([way] * WORKERS)
        return drained.figures(cost, time.process_time() - own)


async def _by_loop(url: str, postmaster: int, seconds: float) -> dict[str, float]:
    connections = [await connect(url) for _ in range(WORKERS)]
    own = time.process_time()
    with Cost(None, postmaster) as cost:
        drained = await drain(list(map(_loop, connections)), time.perf_counter() + seconds)
    own = time.process_time() - own
    for connection in connections:
        await connection.close()
    return drained.figures(cost, own)


def _loop(connection: asyncpg.Connection) -> Drain:
    async def way(worker: str) -> bool:
        token = secrets.token_urlsafe(16)
        async with connection.transaction():
            row = await connection.fetchrow(_NEXT, QUEUE)
            if row is None:
                return False
            task_id, seq = row
            await connection.execute(_CLAIM, task_id, worker, token, _LEASE_S)
            await connection.execute(_EVENT, task_id, seq + 1, "LOG", f'Claimed by "{worker}"', None)
        for statement, kind, message, progress in (
            (_PROGRESS, "PROGRESS", f"Progress updated to {PROGRESS}%", PROGRESS),
            (_COMPLETE, "SUCCESS", "Task completed successfully", 100),
        ):
            async with connection.transaction():
                seq = await connection.fetchval(_LOCK, task_id, token)
                assert seq is not None
                await connection.execute(statement, task_id, progress)
                await connection.execute(_EVENT, task_id, seq + 1, kind, message, progress)
        return True

    return way


_NEXT: Final = """
    SELECT task_id, seq FROM tasks WHERE queue = $1 AND ready
    ORDER BY priority DESC, created_at, task_id LIMIT 1
    FOR UPDATE SKIP LOCKED
"""
_CLAIM: Final = """
    UPDATE tasks
    SET status = 'IN_PROGRESS', seq = seq + 1, updated_at = now(), started_at = now(), attempt = attempt + 1,
        ready = false, worker = $2, lease_token = $3, lease_expires_at = now() + $4 * interval '1 second',
        due_at = now() + $4 * interval '1 second'
    WHERE task_id = $1
"""
_LOCK: Final = "SELECT seq FROM tasks WHERE task_id = $1 AND lease_token = $2 FOR UPDATE"
_PROGRESS: Final = "UPDATE tasks SET progress = $2, seq = seq + 1, updated_at = now() WHERE task_id = $1"
_COMPLETE: Final = """
    UPDATE tasks
    SET status = 'SUCCESS', progress = $2, seq = seq + 1, updated_at = now(), completed_at = now(),
        worker = NULL, lease_expires_at = NULL, due_at = NULL
    WHERE task_id = $1
"""
_EVENT: Final = """
    INSERT INTO task_events (task_id, seq, event_type, message, progress, timestamp, size)
    VALUES ($1, $2, $3, $4, $5, now(), octet_length($4))
"""


def main() -> None:
    kind, url, postmaster, *seconds = sys.argv[1:]
    if kind == "storage":
        figures = uvloop.run(_by_storage(url, int(postmaster)))
    else:
        figures = uvloop.run(_by_loop(url, int(postmaster), float(seconds[0])))
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
