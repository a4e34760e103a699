"""A task that this worker has claimed: held by heartbeats, worked on in a block, ended by how the block ends.

=============================  =====================================================================
the block                      the task
=============================  =====================================================================
ends                           `complete`, with the metadata in `task.result`
raises an exception            `fail` with its words; the server tries it again if attempts are left
raises NoRetry                 `fail` with its words, for good
is canceled or interrupted     `release`: another worker may have it at once, and the attempt does not count
is overtaken                   nothing: the lease was lost, or somebody has ended the task
=============================  =====================================================================

An exception of the block has its place in the task and in the log, so it goes no further: the next task is another
matter. What interrupts the program goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Any, Final

from worker.backoff import jittered
from worker.client import Client
from worker.errors import LeaseLost, Unreachable, Unwanted, WorkerError
from worker.progress import Progress
from worker.reports import WRONG_RESULT, Reports
from worker.task import ClaimedTask, Job

log: Final = logging.getLogger("spectral.worker")

# Two heartbeats may be lost before the lease is.
HEARTBEATS_PER_LEASE: Final = 3
# A task that is not given back is free when its lease runs out; so giving it back is not worth a long wait. Nor is
# telling how one ended, to somebody who is canceled.
RELEASE_PATIENCE_S: Final = 5.0


class Outcome(StrEnum):
    """What became of a claim, as this worker knows."""

    HELD = "HELD"
    COMPLETED = "COMPLETED"
    # This attempt; the server may make another.
    FAILED = "FAILED"
    RELEASED = "RELEASED"
    # The task was no longer this worker's, or nothing could be told to the server in time.
    LOST = "LOST"


class Interrupted(Exception):
    """The worker stops, and has no more time for the block."""


class Claim:
    """A task that was claimed. Enter it to work on the task; `release` it when that is not to be."""

    def __init__(
        self, client: Client, job: Job, token: str, lease_s: int, held_since: float, given_up: Callable[["Claim"], None]
    ) -> None:
        self.job = job
        self.outcome = Outcome.HELD
        self._lease_s = lease_s
        # By the clock of the loop. The server counts from a little later, so it never runs out there first.
        self._lease_ends = held_since + lease_s
        self._given_up = given_up
        self._reports = Reports(client, job.task_id, token, patience_s=lease_s)
        self._progress = Progress(self._reports.update_progress, self._not_told)
        # The one who works on it, and how often it was canceled before.
        self._block: asyncio.Task[Any] | None = None
        self._cancels_before = 0
        self._task = ClaimedTask(self._reports, self._progress, job)
        # Why the block is to end, when that is not its own doing.
        self._why: Unwanted | Interrupted | None = None
        self._canceled = False
        self._settling = False
        self._keeper = asyncio.create_task(self._keep(), name=f"heartbeats for {job.task_id}")

    @property
    def entered(self) -> bool:
        """Whether the task is being worked on."""
        return self._block is not None

    @property
    def lost(self) -> bool:
        """Whether the task is no longer this worker's."""
        return self._why is not None or self._settling

    async def __aenter__(self) -> ClaimedTask:
        if isinstance(self._why, Unwanted):
            raise self._why
        if self._settling:
            raise LeaseLost(f'Task "{self.job.task_id}" was given back before the work began.')
        assert self._block is None, "a claim is entered once"
        self._block = asyncio.current_task()
        assert self._block is not None
        self._cancels_before = self._block.cancelling()
        return self._task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        # Nobody cancels the block any more; what follows is ours.
        block, self._block = self._block, None
        self._settling = True
        assert block is not None
        if self._canceled:
            block.uncancel()
        if isinstance(error, asyncio.CancelledError) and block.cancelling() <= self._cancels_before:
            # Nobody else has canceled it. A task that was given back for its own fault would come back at once.
            error = self._why or RuntimeError("Something that the block waited for was canceled.")
        # What was done is told even if whoever did it is canceled meanwhile, or it would be done again.
        settling = asyncio.create_task(self._settle(error), name=f"end of {self.job.task_id}")
        try:
            return await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait([settling], timeout=RELEASE_PATIENCE_S)
            raise
        finally:
            settling.cancel()
            await asyncio.wait([settling])
            await self._let_go()

    async def release(self) -> None:
        """Give the task back, before it was begun. Another worker may have it at once."""
        if self._settling:
            return
        assert self._block is None, "a claim that was entered is given back by what happens in its block"
        self._settling = True
        try:
            if not isinstance(self._why, Unwanted):
                await self._give_back()
        finally:
            await self._let_go()

    def interrupt(self) -> None:
        """There is no more time: end the block, and give the task back."""
        self._overtake(Interrupted())

    async def _settle(self, error: BaseException | None) -> bool:
        """Say how the block ended; return whether its exception goes no further."""
        goes_no_further = error is None or isinstance(error, Exception)
        unwanted = self._why if isinstance(self._why, Unwanted) else self._reports.unwanted
        try:
            if unwanted is not None:
                raise unwanted
            if error is None:
                error = await self._complete()
            if error is None:
                self.outcome = Outcome.COMPLETED
            elif isinstance(self._why, Interrupted) or not isinstance(error, Exception):
                await self._give_back()
            else:
                log.error("Task %s failed", self.job.task_id, exc_info=error)
                await self._progress.flush()
                await self._reports.fail(error)
                self.outcome = Outcome.FAILED
        except Unwanted as why:
            log.warning("Task %s was left: %s", self.job.task_id, why)
        except WorkerError as why:
            log.error("What became of task %s could not be told: %s", self.job.task_id, why)
        return goes_no_further

    async def _complete(self) -> Exception | None:
        """Say that it succeeded; return what is wrong with its result, if that cannot be told."""
        await self._progress.close()
        try:
            await self._reports.complete(self._task.result)
        except Unwanted:
            raise
        except WRONG_RESULT as error:
            return error
        return None

    async def _give_back(self) -> None:
        await self._progress.close()
        await self._reports.release(RELEASE_PATIENCE_S)
        self.outcome = Outcome.RELEASED

    async def _let_go(self) -> None:
        if self.outcome is Outcome.HELD:
            self.outcome = Outcome.LOST
        self._keeper.cancel()
        self._given_up(self)
        await asyncio.wait([self._keeper])
        await self._progress.close()

    async def _keep(self) -> None:
        """Send heartbeats until the task is no longer ours."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(jittered(self._lease_s / HEARTBEATS_PER_LEASE))
            began = clock()
            try:
                async with asyncio.timeout_at(self._lease_ends):
                    await self._reports.heartbeat(self._lease_s)
            except (TimeoutError, Unreachable):
                self._overtake(LeaseLost(f'No heartbeat for task "{self.job.task_id}" was answered in time.'))
                return
            except Unwanted as unwanted:
                self._overtake(unwanted)
                return
            except WorkerError as error:
                # The lease runs out without it, and another worker will have the task.
                self._overtake(LeaseLost(f'The lease of task "{self.job.task_id}" cannot be kept: {error}'))
                return
            self._lease_ends = began + self._lease_s

    def _not_told(self, error: WorkerError) -> None:
        if isinstance(error, Unwanted):
            self._overtake(error)
        else:
            log.warning("Progress of task %s could not be told: %s", self.job.task_id, error)

    def _overtake(self, why: Unwanted | Interrupted) -> None:
        """End the block: what it does is no longer wanted of it."""
        if self._why is not None or self._settling:
            return
        self._why = why
        if self._block is not None:
            self._canceled = True
            self._block.cancel(str(why))
        elif isinstance(why, Unwanted):
            log.warning("Task %s was lost before it was begun: %s", self.job.task_id, why)
            self.outcome = Outcome.LOST
            self._given_up(self)
