"""Workers for spectral-notify, and reports from any program: a client of the API like any other.

::

    async with Worker("https://…/graphql", key, queue="video") as worker:
        async for claim in worker.claims():
            async with claim as task:
                async for frame in task.track(frames(task.metadata)):
                    ...
"""

from worker.blocking import BlockingTask, report_progress, reporting
from worker.claim import Claim, Outcome
from worker.errors import LeaseLost, NoRetry, Refused, Unreachable, Unwanted, WorkerError
from worker.reporting import report_progress_async, reporting_async
from worker.reports import EventType, Json
from worker.task import ClaimedTask, Job, Task
from worker.worker import Worker

__all__ = [
    "BlockingTask",
    "Claim",
    "ClaimedTask",
    "EventType",
    "Job",
    "Json",
    "LeaseLost",
    "NoRetry",
    "Outcome",
    "Refused",
    "Task",
    "Unreachable",
    "Unwanted",
    "Worker",
    "WorkerError",
    "report_progress",
    "report_progress_async",
    "reporting",
    "reporting_async",
]
