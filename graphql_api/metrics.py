"""What is counted, as Prometheus reads it.

Nothing is kept here: a scrape reads what the parts of a process have counted. Where several processes serve, each tells
its parent what it has, and every sample says by its label `worker` whose it is. They are not added up: a worker that is
replaced begins at zero, which Prometheus understands of a series of its own, and of a sum it would not.

All labels are bounded: kinds, codes and states are ours, and of the names that clients choose there are so many and no
more (see ``execution/gauges.py``).
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import orjson
from prometheus_client import Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from graphql_api import errors
from graphql_api.app import App
from storage import Health, Storage
from storage.gauges import Histogram

PATH: Final = "/metrics"
# The one process that serves alone has the label of the first of several.
ALONE: Final = "0"
PARENT: Final = "parent"


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process that serves has counted."""

    storage: Storage
    app: App

    def collect(self) -> Iterator[Metric]:
        """All that is known of it."""
        yield from of_process()
        yield from self.counted()

    def counted(self) -> Iterator[Metric]:
        """What it has counted itself."""
        yield from self._operations()
        yield from self._sockets()
        yield from self._writing()
        yield from self._delivering()
        yield from self._database()

    def _operations(self) -> Iterator[Metric]:
        plans = self.app.plans
        counted = CounterMetricFamily(
            "spectral_operations",
            "Operations that were run, by kind and name, and by what came of them: ok, or the code of the error.",
            labels=("type", "name", "outcome"),
        )
        timed = HistogramMetricFamily(
            "spectral_operation_seconds",
            "How long they took, from the plan to the answer; subscriptions until they began.",
            labels=("type", "name"),
        )
        for (kind, name), gauges in plans.gauges.operations.items():
            for outcome, count in gauges.outcomes.items():
                counted.add_metric((kind, name, outcome), count)
            _add(timed, (kind, name), gauges.duration_s)
        yield counted
        yield timed
        refused = CounterMetricFamily(
            "spectral_errors", "Errors that clients were told of, wherever they came from, by code.", labels=("code",)
        )
        # All that there are, from the start: what grows from nothing is seen to grow only if it was there as zero.
        for code in sorted(errors.codes()):
            refused.add_metric((code,), errors.told[code])
        yield refused
        yield _gauge("spectral_plans", "Plans that are kept.", plans.kept)
        yield _gauge("spectral_plans_bytes", "What they take in memory, roughly.", plans.kept_bytes)
        made = CounterMetricFamily(
            "spectral_plans_made", "Plans that were made, by who runs them: compiled, or graphql-core.", labels=("by",)
        )
        made.add_metric(("compiled",), plans.gauges.compiled)
        made.add_metric(("interpreted",), plans.gauges.declined)
        yield made
        yield _histogram(
            "spectral_plan_seconds", "From a document to its plan, or to why it has none.", plans.gauges.made_s
        )
        yield _counter(
            "spectral_reruns",
            "Compiled operations that graphql-core ran again, because of errors mostly.",
            plans.reruns,
        )
        yield _counter(
            "spectral_rendered",
            "Updates of which the bytes were made, once for all subscribers who asked alike.",
            plans.renderings.made,
        )

    def _sockets(self) -> Iterator[Metric]:
        gauges = self.app.websocket.gauges
        yield _gauge("spectral_sockets", "WebSockets that are open.", gauges.open)
        yield _counter("spectral_sockets_refused", "Handshakes refused because of the page's origin.", gauges.refused)
        closed = CounterMetricFamily(
            "spectral_sockets_closed", "Sockets that the server closed for a fault of the client's.", labels=("code",)
        )
        for code, count in gauges.closed.items():
            closed.add_metric((str(code),), count)
        yield closed

    def _writing(self) -> Iterator[Metric]:
        writer = self.storage.writer
        gauges = writer.gauges
        commands, size = writer.waiting
        yield _gauge("spectral_commands_waiting", "Changes that wait to be written.", commands)
        yield _gauge("spectral_commands_waiting_bytes", "What they hold.", size)
        yield _gauge(
            "spectral_commands_waiting_max", "How many may wait before more are refused.", writer.waiting_commands_max
        )
        yield _counter(
            "spectral_commands_turned_away",
            "Changes refused because so many waited, or they had waited too long.",
            gauges.turned_away,
        )
        yield _histogram("spectral_queue_wait_seconds", "How long changes waited for their group.", gauges.queue_wait_s)
        yield _histogram("spectral_group_commands", "Changes in a group.", gauges.group_commands)
        commits = HistogramMetricFamily(
            "spectral_commit_seconds",
            "From the first statement of a group to its commit: one statement for tasks that are remembered, a "
            "transaction with locks for others.",
            labels=("way",),
        )
        _add(commits, ("remembered",), gauges.remembered_s)
        _add(commits, ("locked",), gauges.locked_s)
        yield commits
        failed = CounterMetricFamily(
            "spectral_groups_failed",
            "Groups that did not simply succeed: taken_apart, because of one command; unknown, when the connection "
            "broke in the commit; unavailable, when there was no database in time.",
            labels=("why",),
        )
        failed.add_metric(("taken_apart",), gauges.taken_apart)
        failed.add_metric(("unknown",), gauges.unknown)
        failed.add_metric(("unavailable",), gauges.unavailable)
        yield failed

    def _delivering(self) -> Iterator[Metric]:
        feed, follower = self.storage.feed, self.storage.follower
        gauges = feed.gauges
        yield _gauge("spectral_subscriptions", "Subscriptions that are open.", feed.subscribers)
        yield _gauge("spectral_watched_tasks", "Tasks that they watch.", len(feed.watched))
        lag = HistogramMetricFamily(
            "spectral_delivery_seconds",
            "From the commit of a change to its message on the way to a subscriber. direct: committed here and written "
            "at once; followed: committed by another process, since the time of the event; buffered: by way of a "
            "buffer or the log, and over HTTP, since the time of the event.",
            labels=("way",),
        )
        _add(lag, ("direct",), gauges.direct_s)
        _add(lag, ("followed",), gauges.followed_s)
        _add(lag, ("buffered",), gauges.buffered_s)
        yield lag
        yield _counter("spectral_overruns", "Buffers dropped because a subscriber was too far behind.", gauges.overruns)
        yield _counter("spectral_holes", "Updates that came before an earlier one.", gauges.holes)
        yield _counter("spectral_catch_ups", "Pages of the log read for a subscriber who was behind.", gauges.catch_ups)
        yield _counter("spectral_repairs", "Changes of other processes that no announcement told of.", follower.repairs)
        yield _counter("spectral_resyncs", "Comparisons of all watched tasks with the table.", follower.resyncs)
        lists = self.storage.live
        yield _gauge("spectral_list_subscriptions", "Subscriptions of lists that are open.", lists.subscribers)
        yield _gauge("spectral_list_filters", "Different filters that they have.", lists.filters)
        yield _counter("spectral_list_updates", "Updates that went to subscribers of lists.", lists.gauges.told)
        yield _counter(
            "spectral_list_coalesced",
            "Those that a later one of the same task replaced before.",
            lists.gauges.coalesced,
        )
        yield _counter("spectral_list_outdated", "Subscribers told to read their list anew.", lists.gauges.outdated)
        yield _counter(
            "spectral_list_repairs",
            "Changes of other processes that no announcement told to lists.",
            self.storage.live_follower.repairs,
        )
        states = GaugeMetricFamily(
            "spectral_feed", "How changes of other processes are heard of: 1 for the state it is in.", labels=("state",)
        )
        for health in Health:
            states.add_metric((health.value,), self.storage.feed_health is health)
        yield states

    def _database(self) -> Iterator[Metric]:
        pool = self.storage.pool
        opened, used, allowed = pool.connections
        connections = GaugeMetricFamily(
            "spectral_connections",
            "Connections to the database: open; used by somebody; max that may be open.",
            labels=("what",),
        )
        connections.add_metric(("open",), opened)
        connections.add_metric(("used",), used)
        connections.add_metric(("max",), allowed)
        yield connections
        yield _counter("spectral_connections_made", "Connections that were made.", pool.gauges.made)
        yield _counter("spectral_connections_failed", "Times that none could be had.", pool.gauges.failed)
        yield _histogram(
            "spectral_connection_wait_seconds", "How long those waited who found all in use.", pool.gauges.wait_s
        )


def of_process() -> Iterator[Metric]:
    """What the kernel knows of this process, where it tells; and which program it is."""
    yield from ProcessCollector(registry=None).collect()
    yield InfoMetricFamily("spectral_build", "The program.", value={"version": version("spectral-notify")})
    yield _gauge("spectral_process_id", "The process.", os.getpid())


def packed(metrics: Iterable[Metric]) -> bytes:
    """Metrics as one line for another process."""
    return orjson.dumps(
        [
            (metric.name, metric.documentation, metric.type, [(s.name, s.labels, s.value) for s in metric.samples])
            for metric in metrics
        ]
    )


def unpacked(line: bytes) -> Iterator[Metric]:
    """The metrics of a line."""
    for name, documentation, kind, samples in orjson.loads(line):
        metric = Metric(name, documentation, kind)
        for sample_name, labels, value in samples:
            metric.add_sample(sample_name, labels, value)
        yield metric


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one scrape brings: the metrics of each process, by its label."""

    found: Mapping[str, Iterable[Metric]]

    def collect(self) -> Iterator[Metric]:
        """All families, each with the samples of all processes."""
        families: dict[str, Metric] = {}
        for worker, metrics in self.found.items():
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
        yield from families.values()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The answer to a scrape, and its content type: Prometheus' text, or OpenMetrics for whoever asks for it."""
        encode, content_type = choose_encoder(accept)
        registry: Any = self
        return encode(registry), content_type


def build_app(scrape: Callable[[], Awaitable[Scrape]]) -> ASGIApp:
    """What answers scrapes, and nothing else."""

    async def answer(request: Request) -> Response:
        body, content_type = (await scrape()).render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return Starlette(routes=[Route(PATH, answer)])


def of_workers(answered: Mapping[int, bool], replaced: int) -> Iterator[Metric]:
    """What a parent knows of its workers: which of them answered it in time, and how many were replaced."""
    yield _counter("spectral_workers_replaced", "Workers that died, and were replaced.", replaced)
    yield _gauge("spectral_workers", "Workers that there should be.", len(answered))
    yield _gauge("spectral_workers_up", "Workers that answered this scrape.", sum(answered.values()))


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(name, documentation, value=value)


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, documentation, labels=())
    _add(family, (), histogram)
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    below = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
    family.add_metric(labels, buckets, histogram.sum)
