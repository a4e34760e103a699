"""What an operator sees of a running server: each thing once, with labels that no client can make many."""

import asyncio
import os
import re
import shutil
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from graphql_api.app import App, build_app
from graphql_api.execution.gauges import NAMES_MAX, OK, OTHER, UNNAMED
from graphql_api.execution.plan import Plans
from graphql_api.metrics import ALONE, Scrape, Serving, packed, unpacked
from graphql_api.schema import schema
from graphql_api.settings import Settings
from storage import Create, Fail, Options, Retry, open_storage
from tests.graphql_api.clients import WAIT_S, data
from tests.graphql_api.test_server import Program, ends_with, program, watching
from tests.graphql_api.test_workers import children, until
from tests.storage.helpers import submit

WORKERS: Final = 2
PROMTOOL: Final = shutil.which("promtool")


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples of a scrape: by name, then by labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name}{labels} stands there twice"
            found[sample.name][labels] = sample.value
    return found


def total(text: str, metric: str, /, **labels: str) -> float:
    """The sum of the samples with these labels."""
    return sum(value for found, value in read(text).get(metric, {}).items() if labels.items() <= dict(found).items())


async def metrics_url(server: Program) -> str:
    """Where the metrics are, which it says on stderr."""
    assert server.process.stderr is not None
    while line := (await server.process.stderr.readline()).decode():
        server.log.append(line)
        if found := re.search(r" The metrics are at (http://\S+)", line):
            return found[1]
    raise AssertionError(f"the program ended: {server.log}")


async def scrape(http: httpx.AsyncClient, url: str) -> str:
    answer = await http.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


CREATE: Final = 'mutation Make { create(taskId: "T") { seq } }'
REPORT: Final = 'mutation { updateProgress(taskId: "T", progress: 5) { seq } }'


async def test_a_server_shows_what_it_did(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
    async with (
        program("serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=0) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
    ):
        url, at = await server.url(), await metrics_url(server)
        async with watching(url, "T") as watcher:
            data((await http.post(url, json={"query": REPORT})).json())
            await watcher.take()
            await http.post(url, json={"query": CREATE})
            await http.post(url, json={"query": "{ nothing }"})
            text = await scrape(http, at)
        operation: Any = {"type": "mutation", "name": UNNAMED, "worker": ALONE}
        assert total(text, "spectral_operations_total", **operation, outcome="ok") == 1
        assert total(text, "spectral_operation_seconds_count", **operation) == 1
        assert total(text, "spectral_operations_total", name="Make", outcome="UNAUTHENTICATED") == 1
        assert total(text, "spectral_operations_total", type="subscription", outcome="ok") == 1
        assert total(text, "spectral_errors_total", code="UNAUTHENTICATED") == 1
        assert total(text, "spectral_errors_total", code="GRAPHQL_VALIDATION_FAILED") == 1
        assert total(text, "spectral_delivery_seconds_count", way="direct") == 1
        assert total(text, "spectral_sockets") == total(text, "spectral_subscriptions") == 1
        assert total(text, "spectral_watched_tasks") == 1
        assert total(text, "spectral_group_commands_sum") == 1
        assert total(text, "spectral_feed", state="connected") == 1
        assert total(text, "spectral_feed") == 1
        assert total(text, "spectral_turns_total", what="heartbeat") == 0
        assert total(text, "spectral_claims_total", what="taken") == total(text, "spectral_claims_total") == 0
        assert total(text, "spectral_connections", what="max") == 10
        assert total(text, "spectral_connections", what="open") >= 1
        assert total(text, "process_resident_memory_bytes") > 10_000_000
        assert total(text, "spectral_process_id") == server.process.pid
        # Codes are there before they were ever told.
        assert dict(read(text)["spectral_errors_total"])[(("code", "TASK_FINISHED"), ("worker", ALONE))] == 0
        # There is nothing else, there or on the port of the service.
        assert (await http.get(at.replace("/metrics", "/"))).status_code == 404
        assert (await http.post(at)).status_code == 405
        assert (await http.get(url.replace("/graphql", "/metrics"))).status_code == 404
        openmetrics = await http.get(at, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        await well_formed(text)


async def well_formed(text: str) -> None:
    """See what Prometheus' own tool says of a scrape."""
    if PROMTOOL is None:
        return
    tool = await asyncio.create_subprocess_exec(
        PROMTOOL,
        "check",
        "metrics",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await tool.communicate(text.encode())
    assert (tool.returncode, said) == (0, b"")


async def test_without_a_port_there_are_no_metrics(database: str) -> None:
    async with program("serve", SPECTRAL_DATABASE_URL=database) as server:
        await server.url()
        server.terminate()
        assert await server.ended() == 0
    assert "metrics" not in "".join(server.log)


async def test_a_metrics_port_that_is_taken_stops_the_start(database: str) -> None:
    async with program("serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=0) as server:
        await server.url()
        port = (await metrics_url(server)).split(":")[2].removesuffix("/metrics")
        ended = await ends_with(1, "serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=port)
        assert f"Port {port} on 127.0.0.1 cannot be taken" in "".join(ended.log)
        assert "SPECTRAL_METRICS_PORT" in "".join(ended.log)


async def test_one_scrape_shows_all_workers_also_when_some_hang_or_are_replaced(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
    async with (
        program("serve", "--workers", str(WORKERS), SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=0) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
    ):
        url, at = await server.url(), await metrics_url(server)

        async def ask_until_both_did_something() -> str:
            async with asyncio.timeout(WAIT_S):
                while True:
                    # A connection each: whichever takes it.
                    await http.post(url, json={"query": REPORT}, headers={"Connection": "close"})
                    text = await scrape(http, at)
                    if all(total(text, "spectral_operations_total", worker=str(n)) for n in range(WORKERS)):
                        return text

        text = await ask_until_both_did_something()
        await well_formed(text)
        assert total(text, "spectral_workers") == total(text, "spectral_workers_up") == WORKERS
        assert total(text, "process_open_fds", worker="parent") > 0
        pids = {n: int(total(text, "spectral_process_id", worker=str(n))) for n in range(WORKERS)}
        assert set(pids.values()) == children(server.process.pid)

        # One that hangs is left out, and holds nobody up.
        os.kill(pids[0], signal.SIGSTOP)
        for _ in range(2):
            text = await scrape(http, at)
            assert total(text, "spectral_workers_up") == WORKERS - 1
            assert total(text, "spectral_operations_total", worker="0") == 0
            assert total(text, "spectral_operations_total", worker="1") > 0
        os.kill(pids[0], signal.SIGCONT)
        async with asyncio.timeout(WAIT_S):
            while total(text, "spectral_workers_up") < WORKERS:
                text = await scrape(http, at)
        assert total(text, "spectral_operations_total", worker="0") > 0

        # One that died begins at zero, under the same label.
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: len(children(server.process.pid) - {pids[0]}) == WORKERS)
        async with asyncio.timeout(WAIT_S):
            while total(text, "spectral_workers_replaced_total") < 1 or total(text, "spectral_workers_up") < WORKERS:
                text = await scrape(http, at)
        assert int(total(text, "spectral_process_id", worker="0")) not in pids.values()
        assert total(text, "spectral_operations_total", worker="0") == 0
        server.terminate()
        assert await server.ended() == 0
    assert "Traceback" not in "".join(server.log)


async def test_many_who_scrape_at_once_ask_a_worker_once(database: str) -> None:
    async with (
        program("serve", SPECTRAL_WORKERS=WORKERS, SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=0) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
    ):
        await server.url()
        at = await metrics_url(server)
        texts = await asyncio.gather(*(scrape(http, at) for _ in range(10)))
        assert all(total(text, "spectral_workers_up") == WORKERS for text in texts)


def labels_of(serving: Serving) -> Counter[str]:
    """How many series each metric has."""
    return Counter(sample.name for metric in serving.counted() for sample in metric.samples)


async def test_queues_and_due_times_are_shown(database: str) -> None:
    async with open_storage(database, timers=True) as storage:
        serving = Serving(storage, build_app(Settings(), storage, asyncio.Event()))

        def shown() -> str:
            return Scrape({"0": serving.counted()}).render("")[0].decode()

        at = datetime.now(UTC) + timedelta(milliseconds=200)
        await submit(storage, Create(task_id="T", options=Options(queue="q", start_at=at, retry=Retry(max_attempts=2))))
        assert await storage.claimer.claim("q", "worker") == []
        with storage.queues.listen("q") as ear:
            assert await ear.wait(WAIT_S)
        (claim,) = await storage.claimer.claim("q", "worker")
        await submit(storage, Fail(task_id="T", error="e", token=claim.token))
        text = shown()
        assert total(text, "spectral_claims_total", what="taken") == 1
        assert total(text, "spectral_claims_total", what="empty") == 1
        assert total(text, "spectral_claim_wait_seconds_count") == 1
        assert total(text, "spectral_turns_total", what="started") == 1
        assert total(text, "spectral_turns_total", what="retried") == 1
        assert total(text, "spectral_turns_total") == 2
        assert total(text, "spectral_timers_held") == 1
        assert total(text, "spectral_timer_tasks_sum") == total(text, "spectral_timer_lag_seconds_count") == 1
        assert storage.timers is not None
        await storage.timers.close()
        assert total(shown(), "spectral_timers_held") == 0
        await well_formed(text)


async def test_a_process_that_has_no_timers_says_so(database: str) -> None:
    async with open_storage(database) as storage:
        serving = Serving(storage, build_app(Settings(), storage, asyncio.Event()))
        text = Scrape({"0": serving.counted()}).render("")[0].decode()
        assert total(text, "spectral_timers_held") == total(text, "spectral_timer_tasks_count") == 0


async def test_a_flood_of_names_makes_no_flood_of_series(database: str) -> None:
    async with open_storage(database) as storage:
        app = build_app(Settings(), storage, asyncio.Event())
        plans, serving = app.plans, Serving(storage, app)
        for number in range(NAMES_MAX - 1):
            await plans.plan(f"query N{number} {{ viewer {{ name }} }}", None)
        gauges = plans.gauges
        # Just below: the name that still has a place, and one that has none.
        await plans.plan("query Last { viewer { name } }", None)
        assert len(gauges.operations) == NAMES_MAX
        assert ("query", "Last") in gauges.operations
        for number in range(300):
            await plans.plan(f"query Flood{number} {{ viewer {{ name }} }}", None)
            await plans.plan(f'mutation Flood{number} {{ delete(taskId: "{number}") }}', None)
        assert len(gauges.operations) == NAMES_MAX + 2
        (await plans.plan("query Again { viewer { name } }", None)).gauges.ended(0, None)
        assert gauges.operations["query", OTHER].outcomes == {OK: 1}
        assert labels_of(serving)["spectral_operation_seconds_count"] == NAMES_MAX + 2


async def test_reruns_of_plans_that_were_dropped_still_count(database: str) -> None:
    plans = Plans(schema)
    for number in range(600):
        plan = await plans.plan(f"query N{number} {{ viewer {{ name }} }}", None)
        plan.executor.reruns += 1
    assert plans.kept < 600
    assert plans.reruns == 600


async def test_metrics_survive_the_way_to_the_parent(database: str) -> None:
    async with open_storage(database) as storage:
        app: App = build_app(Settings(), storage, asyncio.Event())
        (await app.plans.plan("query Q { viewer { name } }", None)).gauges.ended(0, "UNAVAILABLE")
        serving = Serving(storage, app)
        direct, _ = Scrape({"0": serving.counted()}).render("")
        by_line, content_type = Scrape({"0": unpacked(packed(serving.counted()))}).render("")
        assert read(direct.decode()) == read(by_line.decode())
        assert b"\n" not in packed(serving.collect())
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
