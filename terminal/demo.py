"""``demo``: example tasks that live. This program creates them, claims them from their queues and works on them, by the
worker library, as any worker would; what is shown is what the server says of them.
"""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from terminal import look
from terminal.documents import CANCEL, CREATE_MANY, REPORT
from terminal.follow import News, follow, is_gone
from terminal.session import Session
from terminal.tail import EventLines
from terminal.tasks import rows, widths_of
from worker import ClaimedTask, Json, Worker
from worker.errors import Refused, WorkerError

TAG: Final = "demo"
QUEUES: Final = ("demo-video", "demo-reports", "demo-models")
# How much of the time one task takes; some are tried twice, and three come one after the other.
PART_OF_THE_TIME: Final = (0.2, 0.34)
# How much longer than planned the demo may take before what is left is canceled.
PATIENCE: Final = 1.5
FRAMES_PER_S: Final = 4


class EncoderCrashed(Exception):
    """What a film may run into."""


class DamagedFile(Exception):
    """What a report may run into."""


class OutOfMemory(Exception):
    """What a model may run into."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of example task."""

    kind: str
    name: str
    queue: str
    job: Mapping[str, Json]
    options: Mapping[str, Any]
    # It waits for the part before it.
    depends: bool = False
    # Attempts that fail, from the first.
    failures: int = 0
    # Somebody cancels it when it has come so far.
    canceled_at: int | None = None


_VIDEO, _REPORTS, _MODELS = QUEUES
_RETRY: Final = {"maxAttempts": 3, "initialDelaySeconds": 2, "maxDelaySeconds": 4}
PARTS: Final = (
    Part("film", "trailer", _VIDEO, {"source": "trailer.mov", "codec": "av1", "segments": 24}, {"priority": 5}),
    Part("report", "orders-q3", _REPORTS, {"title": "Orders, third quarter", "pages": 18}, {"tags": ["finance"]}),
    Part("model", "churn", _MODELS, {"model": "churn", "epochs": 12}, {"tags": ["gpu"]}),
    Part("film", "lecture", _VIDEO, {"source": "lecture.mkv", "codec": "h264", "segments": 40}, {"retry": _RETRY},
         failures=1),
    Part("report", "scan-archive", _REPORTS, {"title": "Scanned archive", "pages": 30}, {"tags": ["archive"]},
         failures=1),
    Part("report", "extract", _REPORTS, {"title": "Extract of customers", "pages": 8}, {"tags": ["nightly"]}),
    Part("model", "segments", _MODELS, {"model": "segments", "epochs": 8}, {"tags": ["nightly", "gpu"]}, depends=True),
    Part("report", "board-pack", _REPORTS, {"title": "Board pack", "pages": 12}, {"tags": ["nightly"], "priority": 10},
         depends=True),
    Part("film", "draft-cut", _VIDEO, {"source": "draft-cut.mov", "codec": "h264", "segments": 60}, {},
         canceled_at=35),
    Part("model", "ranking", _MODELS, {"model": "ranking", "epochs": 10}, {"tags": ["gpu"], "retry": _RETRY},
         failures=2),
    Part("film", "interview", _VIDEO, {"source": "interview.mp4", "codec": "av1", "segments": 16}, {}),
    Part("report", "invoices", _REPORTS, {"title": "Invoices of November", "pages": 22}, {"tags": ["finance"]}),
)  # fmt: skip


async def demo(session: Session, count: int, seconds: int, keep_for_s: int, *, as_json: bool) -> None:
    """Create tasks and work on them until all have ended."""
    log = logging.getLogger("spectral.worker")
    # Its lines would be of failures that are part of the play.
    log.addHandler(logging.NullHandler())
    log.propagate = False
    parts = dict(_parts(count))
    await session.ask(CREATE_MANY, tasks=_new_tasks(parts, seconds, keep_for_s))
    out = look.console()
    board: Board = JsonBoard() if as_json else DrawnBoard(out, list(parts)) if out.is_terminal else LineBoard(out)
    with board.drawing():
        try:
            async with asyncio.timeout(seconds * PATIENCE + 5):
                await _play(session, parts, count, board)
        except TimeoutError:
            pass
        finally:
            await _cancel(session, [task_id for task_id in parts if task_id not in board.ended])


def _parts(count: int) -> list[tuple[str, Part]]:
    run = f"{random.randrange(16**4):04x}"  # noqa: S311 - the demo's tasks are no secrets
    return [
        (f"{part.kind}-{part.name}-{run}{'' if count <= len(PARTS) else f'-{number // len(PARTS) + 1}'}", part)
        for number, part in ((number, PARTS[number % len(PARTS)]) for number in range(count))
    ]


def _new_tasks(parts: Mapping[str, Part], seconds: int, keep_for_s: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for task_id, part in parts.items():
        options = {**part.options, "queue": part.queue, "keepForSeconds": keep_for_s}
        options["tags"] = [TAG, *part.options.get("tags", [])]
        if part.depends and made:
            options["dependsOn"] = [made[-1]["taskId"]]
        takes_s = seconds * random.uniform(*PART_OF_THE_TIME)  # noqa: S311
        job = {**part.job, "kind": part.kind, "seconds": round(takes_s, 1), "failures": part.failures}
        made.append({"taskId": task_id, "metadata": job, "options": options})
    return made


async def _play(session: Session, parts: Mapping[str, Part], count: int, board: "Board") -> None:
    place = session.place
    workers = [
        Worker(place.url, place.key, queue=queue, name=f"{queue}-worker", grace_s=0, signals=(), direct=place.own)
        for queue in QUEUES
    ]
    concurrency = max(2, math.ceil(count / len(QUEUES) * 0.7))

    async def until_all_have_ended() -> None:
        async with asyncio.TaskGroup() as group:
            for task_id, part in parts.items():
                group.create_task(_follow(session, task_id, part, board))
        for worker in workers:
            worker.stop()

    async with contextlib.AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(until_all_have_ended())
                for worker in workers:
                    group.create_task(worker.run(_work, concurrency=concurrency))
        except* WorkerError as errors:
            raise _first(errors) from None


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _follow(session: Session, task_id: str, part: Part, board: "Board") -> None:
    """Show what becomes of a task; cancel it, where that is its part."""
    canceling = part.canceled_at
    try:
        async with aclosing(follow(session.client, task_id, 0, patience_s=session.patience_s)) as all_news:
            async for news in all_news:
                board.show(news)
                if canceling is not None and news.task["progress"] >= canceling:
                    canceling = None
                    with contextlib.suppress(Refused):
                        await session.ask(CANCEL, taskId=task_id, metadata={"reason": "A newer cut was uploaded."})
    except Refused as refused:
        if not is_gone(refused):
            raise
    board.ended.add(task_id)


async def _cancel(session: Session, task_ids: list[str]) -> None:
    """Say of what has not ended that nobody will work on it."""
    if task_ids:
        reason = {"reason": "The demo was over."}
        reports = [{"taskId": task_id, "cancel": True, "metadata": reason} for task_id in task_ids]
        await session.ask(REPORT, reports=reports)


async def _work(task: ClaimedTask) -> Json:
    """What any worker would do with such a task: its metadata says all."""
    return await _WORK[task.metadata["kind"]](task, task.job.attempt <= task.metadata["failures"])


async def _film(task: ClaimedTask, failing: bool) -> Json:
    job = task.metadata
    await task.event(f"Probed {job['source']}: 3840x2160, 24 fps", metadata={"codec": job["codec"]})
    async for segment in _steps(task, job["segments"], job["seconds"]):
        if failing and segment > job["segments"] * 0.6:
            raise EncoderCrashed(f"segment {segment} of {job['segments']}: the encoder lost its device")
        if segment % 8 == 0:
            await task.event(f"Segment {segment} of {job['segments']} encoded")
    await task.event("Joining segments and sound")
    return {"url": f"/films/{task.task_id}.mp4", "megabytes": job["segments"] * 11}


async def _report(task: ClaimedTask, failing: bool) -> Json:
    job = task.metadata
    await task.event(f"Reading the data: {job['title']}")
    async for page in _steps(task, job["pages"], job["seconds"]):
        if failing and page > job["pages"] * 0.7:
            raise DamagedFile(f"page {page} of {job['pages']} cannot be read; scan it again")
        if page % 6 == 0:
            await task.event(f"{page} pages set")
    return {"url": f"/reports/{task.task_id}.pdf", "pages": job["pages"]}


async def _model(task: ClaimedTask, failing: bool) -> Json:
    job = task.metadata
    accuracy = 0.0
    async for epoch in _steps(task, job["epochs"], job["seconds"]):
        if failing and epoch > job["epochs"] * 0.4:
            raise OutOfMemory(f"epoch {epoch}: a batch of 512 does not fit; trying smaller ones")
        accuracy = round(0.97 - 0.5 * math.exp(-epoch / 4), 3)
        measured = {"epoch": epoch, "loss": round(1.4 * math.exp(-epoch / 4), 3), "accuracy": accuracy}
        message = f"Epoch {epoch} of {job['epochs']}: accuracy {accuracy:.1%}"
        await task.event(message, metadata=measured)
    return {"weights": f"/models/{task.task_id}.bin", "accuracy": accuracy}


async def _steps(task: ClaimedTask, count: int, seconds: float) -> AsyncIterator[int]:
    """Work that takes so long, in so many steps, each of which is progress."""
    for step in range(1, count + 1):
        await asyncio.sleep(seconds / count)
        yield step
        task.progress(100 * step // count)


_WORK: Final[Mapping[str, Callable[[ClaimedTask, bool], Awaitable[Json]]]] = {
    "film": _film,
    "report": _report,
    "model": _model,
}


class Board:
    """Whatever shows what becomes of the demo's tasks."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    def show(self, news: News) -> None:
        """There is news of a task."""

    def drawing(self) -> AbstractContextManager[Any]:
        """What lasts while there may be news."""
        return nullcontext()


class JsonBoard(Board):
    """Each event as a line of JSON."""

    def show(self, news: News) -> None:
        """Print its events."""
        EventLines().show(news)


class LineBoard(Board):
    """Each event that is more than a number, as a line."""

    def __init__(self, out: Console) -> None:
        super().__init__()
        self._out = out

    def show(self, news: News) -> None:
        """Print its events."""
        for event in news.events:
            if not look.says_only_progress(event):
                name = (f"{look.plain(news.task['taskId'])}  ", "bold")
                self._out.print(Text.assemble(name, look.event_line(event)), soft_wrap=True)


class DrawnBoard(Board):
    """All tasks as a table that is drawn over again."""

    def __init__(self, out: Console, task_ids: list[str]) -> None:
        super().__init__()
        self._out = out
        self._tasks: dict[str, Mapping[str, Any] | None] = dict.fromkeys(task_ids)

    def show(self, news: News) -> None:
        """Draw it with the next frame."""
        self._tasks[news.task["taskId"]] = news.task

    def drawing(self) -> AbstractContextManager[Any]:
        """Draw, as long as this lasts."""
        return Live(console=self._out, get_renderable=self._draw, refresh_per_second=FRAMES_PER_S)

    def _draw(self) -> Table | Text:
        known = [task for task in self._tasks.values() if task is not None]
        if not known:
            return Text("Creating tasks …", "dim")
        if (surplus := len(known) - self._out.size.height + 2) > 0:
            # What goes on is worth more than what has ended.
            ended = [task["taskId"] for task in known if task["status"] in look.FINAL][:surplus]
            known = [task for task in known if task["taskId"] not in ended]
        return rows(self._out, known, widths_of(self._out, known))
