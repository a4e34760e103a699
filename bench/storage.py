"""What grouping changes into one commit buys, and whether a long log or a long list costs more than a short one.

``python -m bench.storage`` starts a database of its own in a temporary folder, measures, and prints one table. It is no
test: it ends with status 0 whatever it measures, and with 1 only when the database does not hold exactly what was
acknowledged.

Everything is measured against something else in the same run, in turns (A B A B …), so that a machine which is busy, or
slow, or has a slow disk, is so for both. Ratios can be compared between machines; rates cannot.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import bindparam, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage import (
    CONNECTIONS_MAX,
    Filter,
    StartupError,
    Status,
    Storage,
    Task,
    TaskNotFound,
    UpdateProgress,
    cursor,
    history_range,
    open_storage,
)
from storage.counts import recount
from storage.embedded import embedded_postgres
from storage.lifecycle import decide
from storage.tables import task_columns, task_events, task_of, tasks

# A million rows take seconds to make, and a caller of the obvious way may wait in line for a connection; neither is
# what is measured, so neither may run into the limits of the service.
STATEMENT_TIMEOUT_MS: Final = 300_000
POOL_WAIT_S: Final = 60.0
WARM_UP_S: Final = 1.0
READS: Final = 500
READS_BEFORE: Final = 30
PAGE_ROWS: Final = 50
SMALL_ROWS: Final = 1_000
BIG_ROWS: Final = 1_000_000
BIG_PAGE: Final = 5_000
READ_RATIO_MAX: Final = 2.0
LONG_TASK: Final = "the-task-with-the-long-history"
UNFINISHED: Final = (Status.PENDING, Status.IN_PROGRESS)
SYNCS: Final = 40
MEASURES: Final = ("progress", "history", "tasks")
# What a shell reports for Ctrl-C; 1 would say that the verification failed.
INTERRUPTED: Final = 130
# Wide enough for the table; a pipe has no width to ask for.
PIPE_COLUMNS: Final = 120


@dataclass(frozen=True, slots=True)
class Load:
    """Callers, each with one change under way at a time, each change on a task picked at random."""

    callers: int
    task_count: int
    # How many times the rate of the obvious way the writer is meant to reach.
    target: float

    @property
    def name(self) -> str:
        return f"{self.callers} callers, {self.task_count:,} task{'s' if self.task_count > 1 else ''}"


LOADS: Final = (Load(32, 10_000, 5), Load(256, 10_000, 10), Load(32, 1, 15))


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of changes measured."""

    rate: float
    # Seconds of processor time for each change, here and in the whole of Postgres.
    cpu_here_s: float
    cpu_postgres_s: float | None


class VerificationFailed(Exception):
    """The database does not hold what was acknowledged, or gives what was not asked for."""


Cells = tuple[str, str, str, str, str, str]
Database = tuple[Storage, AsyncEngine]
"""A database in our way, and in the way that is common."""
Apply = Callable[[UpdateProgress], Awaitable[object]]


# ---------------------------------------------------------------- changes


async def measure_changes(folder: Path, load: Load, rounds: int, seconds: float, console: Console) -> list[Cells]:
    """The writer against one transaction for each change, in turns on the same tables."""
    async with _database(folder, f"changes-{load.callers}-{load.task_count}") as (storage, engine):
        await _run_sql(engine, _FILL_TASKS, rows=load.task_count, statuses=[Status.IN_PROGRESS.value])
        await _run_sql(engine, _FILL_FIRST_EVENTS)
        await _settle(engine)
        task_ids = await _column(engine, "SELECT task_id FROM tasks")
        ways: dict[str, Apply] = {
            "obvious": lambda command: change_in_one_transaction(engine, command),
            "ours": storage.writer.submit,
        }
        measured: dict[str, list[Round]] = {way: [] for way in ways}
        for apply in ways.values():
            await _round(engine, load, task_ids, apply, min(WARM_UP_S, seconds))
        for number in range(1, rounds + 1):
            for way, apply in ways.items():
                measured[way].append(await _round(engine, load, task_ids, apply, seconds))
            rates = ", ".join(f"{way} {results[-1].rate:,.0f}/s" for way, results in measured.items())
            console.print(f"{load.name}, round {number} of {rounds}: {rates}")
    return _change_cells(load, measured["obvious"], measured["ours"])


async def change_in_one_transaction(engine: AsyncEngine, command: UpdateProgress) -> Task:
    """The obvious way: lock the task, let the rules decide, write the task and its event, commit."""
    async with engine.begin() as connection:
        row = (await connection.execute(_LOCK_ONE, {"wanted": command.task_id})).one_or_none()
        task = decide(None if row is None else task_of(row), command, datetime.now(UTC))
        if task is None or task.last_event is None:
            raise TaskNotFound(command.task_id)
        await connection.execute(
            _UPDATE_ONE,
            {
                "wanted": task.task_id,
                "status": task.status,
                "progress": task.progress,
                "seq": task.seq,
                "updated_at": task.updated_at,
                "started_at": task.started_at,
                "completed_at": task.completed_at,
                "failed_at": task.failed_at,
                "canceled_at": task.canceled_at,
            },
        )
        event = task.last_event
        await connection.execute(
            _INSERT_ONE,
            {
                "task_id": event.task_id,
                "seq": event.seq,
                "event_type": event.event_type,
                "message": event.message,
                "progress": event.progress,
                "metadata": None,
                "timestamp": event.timestamp,
                "idempotency_key": None,
                "fingerprint": None,
            },
        )
    return task


_LOCK_ONE: Final = select(*task_columns).where(tasks.c.task_id == bindparam("wanted")).with_for_update()
_UPDATE_ONE: Final = update(tasks).where(tasks.c.task_id == bindparam("wanted"))
_INSERT_ONE: Final = insert(task_events)


async def _round(engine: AsyncEngine, load: Load, task_ids: Sequence[str], apply: Apply, seconds: float) -> Round:
    """Let all callers change tasks for a while; then see that the database holds what they were told."""
    before = await _sum_of_seq(engine)
    postmaster = await _postmaster(engine)
    # The same tasks in the same order for both ways.
    choice = random.Random(load.callers)
    acknowledged = 0
    cpu_here, cpu_postgres, start = time.process_time(), _postgres_cpu_s(postmaster), time.perf_counter()

    async def caller() -> None:
        nonlocal acknowledged
        while time.perf_counter() - start < seconds:
            await apply(UpdateProgress(task_id=choice.choice(task_ids), progress=choice.randrange(101)))
            acknowledged += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(load.callers):
            group.create_task(caller())
    elapsed = time.perf_counter() - start
    cpu_here = time.process_time() - cpu_here
    cpu_after = _postgres_cpu_s(postmaster)
    await _verify_changes(engine, before + acknowledged)
    return Round(
        rate=acknowledged / elapsed,
        cpu_here_s=cpu_here / acknowledged,
        cpu_postgres_s=None if cpu_postgres is None or cpu_after is None else (cpu_after - cpu_postgres) / acknowledged,
    )


async def _verify_changes(engine: AsyncEngine, expected: int) -> None:
    found = await _sum_of_seq(engine)
    if found != expected:
        raise VerificationFailed(f"The numbers of all tasks should add up to {expected:,}; they make {found:,}.")
    broken = await _column(engine, _GAPS)
    if broken:
        raise VerificationFailed(f"Events of {len(broken):,} tasks are not numbered 1, 2, 3 …; one is {broken[0]!r}.")


# Numbers are unique by the primary key. So they have no gap when they start at 1 and end at their count.
_GAPS: Final = """
    SELECT task_id
    FROM (SELECT task_id, min(seq) AS low, max(seq) AS high, count(*) AS events FROM task_events GROUP BY task_id) log
    FULL JOIN tasks USING (task_id)
    WHERE (low, high, seq) IS DISTINCT FROM (1::bigint, events, events)
"""


def _change_cells(load: Load, obvious: Sequence[Round], ours: Sequence[Round]) -> list[Cells]:
    rates = [statistics.median(result.rate for result in results) for results in (obvious, ours)]
    ratio = rates[1] / rates[0]
    cells: list[Cells] = [
        (
            f"progress, {load.name}",
            f"{rates[0]:,.0f}/s",
            f"{rates[1]:,.0f}/s",
            f"{ratio:.1f}x",
            f">= {load.target:g}x",
            "yes" if ratio >= load.target else "no",
        ),
        _cpu_cells("this process", [r.cpu_here_s for r in obvious], [r.cpu_here_s for r in ours]),
    ]
    postgres = [[r.cpu_postgres_s for r in results if r.cpu_postgres_s is not None] for results in (obvious, ours)]
    if all(postgres):
        cells.append(_cpu_cells("Postgres", *postgres))
    return cells


def _cpu_cells(whose: str, obvious: Sequence[float], ours: Sequence[float]) -> Cells:
    before, after = statistics.median(obvious) * 1e6, statistics.median(ours) * 1e6
    less = f"1/{before / after:.1f}" if after > 0 else ""
    return f"  CPU per change, {whose}", f"{before:,.0f} µs", f"{after:,.0f} µs", less, "", ""


# ---------------------------------------------------------------- reads


async def measure_reads(folder: Path, only: Collection[str], console: Console) -> list[Cells]:
    """The same questions to a small and to a big database, in turns."""
    async with _database(folder, "small") as small, _database(folder, "big") as big:
        for (storage, engine), rows in ((small, SMALL_ROWS), (big, BIG_ROWS)):
            start = time.perf_counter()
            await _run_sql(engine, _FILL_TASKS, rows=rows, statuses=[status.value for status in Status])
            await _run_sql(engine, _FILL_LONG_TASK, rows=rows, task_id=LONG_TASK)
            await _run_sql(engine, _FILL_LONG_LOG, rows=rows, task_id=LONG_TASK)
            await recount(storage.pool)
            await _settle(engine)
            console.print(f"{rows:,} tasks, and {rows:,} events of one: made in {time.perf_counter() - start:.1f} s")
        cells: list[Cells] = []
        if "history" in only:
            cells.append(
                await _in_turns(
                    f"history(last: {PAGE_ROWS}): of {BIG_ROWS:,} events vs of {SMALL_ROWS:,}",
                    lambda: _history(small[0], SMALL_ROWS),
                    lambda: _history(big[0], BIG_ROWS),
                )
            )
        if "tasks" in only:
            for label, statuses in (("tasks", None), ("tasks, 2 statuses", UNFINISHED)):
                for page in (1, BIG_PAGE):
                    cells.append(await _measure_page(small, big, label, page, statuses))
    return cells


async def _measure_page(
    small: Database, big: Database, label: str, page: int, statuses: Collection[Status] | None
) -> Cells:
    small_page = page if page == 1 else await small[0].reader.count(Filter(statuses=statuses)) // PAGE_ROWS
    if await big[0].reader.count(Filter(statuses=statuses)) < page * PAGE_ROWS:
        raise VerificationFailed(f"The big list has no page {page:,}.")
    ask_small = await _page_reader(small, small_page, statuses)
    ask_big = await _page_reader(big, page, statuses)
    name = f"{label}: page {page:,} of {BIG_ROWS:,} vs page {small_page} of {SMALL_ROWS:,}"
    return await _in_turns(name, ask_small, ask_big)


async def _page_reader(
    database: Database, page: int, statuses: Collection[Status] | None
) -> Callable[[], Awaitable[None]]:
    """What asks for that page, by the cursor that the page before it ends with, and sees that it gets it."""
    storage, engine = database
    newest = select(*task_columns).order_by(tasks.c.created_at.desc(), tasks.c.task_id.desc())
    if statuses is not None:
        newest = newest.where(tasks.c.status.in_([status.value for status in statuses]))
    before = (page - 1) * PAGE_ROWS
    # Walking there takes thousands of pages; counting there takes one slow statement.
    async with engine.connect() as connection:
        rows = (await connection.execute(newest.offset(max(before - 1, 0)).limit(PAGE_ROWS + 1))).all()
    after = cursor(task_of(rows[0])) if before else None
    expected = [row.task_id for row in (rows[1:] if before else rows[:PAGE_ROWS])]

    async def ask() -> None:
        found = await storage.reader.page(PAGE_ROWS, after, Filter(statuses=statuses))
        if [task.task_id for task in found.tasks] != expected:
            raise VerificationFailed(f"Page {page:,} of the list does not hold the tasks that belong there.")

    return ask


async def _history(storage: Storage, rows: int) -> None:
    task = await storage.reader.task(LONG_TASK)
    if task is None:
        raise VerificationFailed("The task with the long history is not there.")
    events = await storage.reader.events(LONG_TASK, *history_range(task, None, PAGE_ROWS, None, None))
    if [event.seq for event in events] != list(range(rows - PAGE_ROWS + 1, rows + 1)):
        raise VerificationFailed(f"history(last: {PAGE_ROWS}) did not give the last {PAGE_ROWS} of {rows:,} events.")


async def _in_turns(
    name: str, ask_small: Callable[[], Awaitable[None]], ask_big: Callable[[], Awaitable[None]]
) -> Cells:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(READS_BEFORE + READS):
        for ask, found in zip((ask_small, ask_big), times, strict=True):
            start = time.perf_counter()
            await ask()
            if number >= READS_BEFORE:
                found.append(time.perf_counter() - start)
    small_ms, big_ms = (statistics.median(found) * 1e3 for found in times)
    ratio = big_ms / small_ms
    return (
        name,
        f"{small_ms:.2f} ms",
        f"{big_ms:.2f} ms",
        f"{ratio:.2f}x",
        f"<= {READ_RATIO_MAX:g}x",
        "yes" if ratio <= READ_RATIO_MAX else "no",
    )


# ---------------------------------------------------------------- databases


@asynccontextmanager
async def _database(folder: Path, name: str) -> AsyncIterator[Database]:
    """A fresh database with the schema of the service, on a server of its own: the service's account may make none."""
    async with (
        embedded_postgres(folder / name, role="server") as url,
        open_storage(url, statement_timeout_ms=STATEMENT_TIMEOUT_MS) as storage,
    ):
        # As many connections as the storage has; its writer makes do with one of its own.
        engine = create_async_engine(
            url,
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            connect_args={"server_settings": {"synchronous_commit": "on", "jit": "off"}},
        )
        try:
            yield storage, engine
        finally:
            await engine.dispose()


async def _run_sql(engine: AsyncEngine, sql: str, **parameters: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(sql), parameters)


async def _column(engine: AsyncEngine, sql: str) -> Sequence[str]:
    async with engine.connect() as connection:
        return (await connection.execute(text(sql))).scalars().all()


async def _sum_of_seq(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT sum(seq) FROM tasks"))).scalar_one())


async def _settle(engine: AsyncEngine) -> None:
    """Do now what Postgres would otherwise do in the background while something is measured."""
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM (ANALYZE) tasks, task_events"))


# As old lists are: IDs in no order, creation in order. Bulk SQL, because only what comes after it is measured.
_FILL_TASKS: Final = """
    INSERT INTO tasks (
        task_id, status, progress, metadata, seq, created_by,
        created_at, updated_at, started_at, completed_at, failed_at, canceled_at
    )
    SELECT
        md5(number::text), status, 50, '{"job": "nightly report", "rows": 125000}', 1, 'bench',
        born, born, born,
        CASE status WHEN 'SUCCESS' THEN born END,
        CASE status WHEN 'FAILED' THEN born END,
        CASE status WHEN 'CANCELED' THEN born END
    FROM generate_series(1, CAST(:rows AS integer)) AS number
    CROSS JOIN LATERAL (
        SELECT
            (CAST(:statuses AS text[]))[number % cardinality(CAST(:statuses AS text[])) + 1] AS status,
            now() - (CAST(:rows AS integer) - number) * interval '1 second' AS born
    ) AS made
"""
_FILL_FIRST_EVENTS: Final = """
    INSERT INTO task_events (task_id, seq, event_type, message, timestamp)
    SELECT task_id, 1, 'LOG', 'Task created', created_at FROM tasks
"""
_FILL_LONG_TASK: Final = """
    INSERT INTO tasks (task_id, status, progress, seq, created_at, updated_at, started_at)
    SELECT CAST(:task_id AS text), 'IN_PROGRESS', 50, CAST(:rows AS integer), now(), now(), now()
"""
_FILL_LONG_LOG: Final = """
    INSERT INTO task_events (task_id, seq, event_type, message, progress, timestamp)
    SELECT CAST(:task_id AS text), number, 'PROGRESS', format('Progress updated to %s%%', number % 101), 50, now()
    FROM generate_series(1, CAST(:rows AS integer)) AS number
"""


# ---------------------------------------------------------------- processors, disk


async def _postmaster(engine: AsyncEngine) -> int | None:
    """The process that all processes of this Postgres are children of; None when this machine does not show it."""
    async with engine.connect() as connection:
        backend = int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())
    stat = _stat(Path(f"/proc/{backend}"))
    return None if stat is None or stat.name != "postgres" else stat.parent


@dataclass(frozen=True, slots=True)
class _Stat:
    """What /proc tells of a process."""

    name: str
    parent: int
    # Its own time, and with that the time of its children that have ended.
    ticks: int
    ticks_with_ended: int


def _stat(process: Path) -> _Stat | None:
    try:
        content = (process / "stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold any character, so the numbers begin after the last one.
    head, _, tail = content.rpartition(")")
    numbers = tail.split()
    times = [int(number) for number in numbers[11:15]]
    return _Stat(head.partition("(")[2], int(numbers[1]), sum(times[:2]), sum(times))


def _postgres_cpu_s(postmaster: int | None) -> float | None:
    """Processor time of everything that belongs to Postgres: backends, background, and what has ended."""
    if postmaster is None:
        return None
    root = _stat(Path(f"/proc/{postmaster}"))
    if root is None:
        return None
    processes = (_stat(path) for path in Path("/proc").iterdir() if path.name.isdecimal())
    ticks = root.ticks_with_ended + sum(stat.ticks for stat in processes if stat and stat.parent == postmaster)
    return ticks / os.sysconf("SC_CLK_TCK")


def _sync_ms(folder: Path) -> float:
    """How long the disk takes to make a page durable. Group commit shares this among many changes."""
    took = []
    file = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(SYNCS):
            os.pwrite(file, bytes(8192), 0)
            start = time.perf_counter()
            os.fsync(file)
            took.append(time.perf_counter() - start)
    finally:
        os.close(file)
    return statistics.median(took) * 1e3


# ---------------------------------------------------------------- the run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description="Measure the storage.")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round of changes (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each way (default: 3)")
    parser.add_argument(
        "--only", action="append", choices=MEASURES, help="measure this alone; may be given more than once"
    )
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.rounds < 1:
        parser.error("--seconds must be above 0, and --rounds at least 1")
    return arguments


async def _measure(folder: Path, arguments: argparse.Namespace, console: Console) -> Table:
    this = asyncio.current_task()
    assert this is not None
    # As Ctrl-C does: stop the database and remove the folder.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    only = arguments.only or MEASURES
    table = Table(box=box.ASCII2)
    for heading in ("measure", "obvious way", "ours", "ratio", "target", "reached"):
        # On a narrow screen the first column folds; a number is never cut.
        name = heading == "measure"
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name)
    console.print(f"{os.cpu_count()} processors; the disk takes {_sync_ms(folder):.2f} ms to make a page durable")
    if "progress" in only:
        for load in LOADS:
            for cells in await measure_changes(folder, load, arguments.rounds, arguments.seconds, console):
                table.add_row(*cells)
        table.add_section()
    if "history" in only or "tasks" in only:
        for cells in await measure_reads(folder, only, console):
            table.add_row(*cells)
    return table


def main() -> None:
    arguments = _arguments()
    console = Console(
        width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False, highlight=False, soft_wrap=False
    )
    try:
        with tempfile.TemporaryDirectory(prefix="spectral-bench-") as folder:
            table = uvloop.run(_measure(Path(folder), arguments, console))
    except (StartupError, VerificationFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped; there is nothing to show.")
        sys.exit(INTERRUPTED)
    console.print(table)
    console.print("progress: one transaction for each change against the writer; medians of all rounds.")
    console.print(f"reads: the obvious way is the small database, ours the big one; medians of {READS} calls each.")
    if not Path("/proc/self/stat").exists():
        console.print("This system has no /proc, so the processor time of Postgres was not measured.")


if __name__ == "__main__":
    main()
