"""One trace from a request, through the group that committed what it asked for, to those who were told of it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from graphql_api.app import App, build_app
from graphql_api.execution.json import encode
from graphql_api.settings import Settings
from graphql_api.traces import Traces
from graphql_api.wire.headers import Headers
from storage import Create, Storage, open_storage
from storage.committer import Committer, Entry
from tests.graphql_api.clients import WAIT_S, until
from tests.graphql_api.test_metrics import REPORT
from tests.graphql_api.test_server import ends_with, program
from tests.storage.helpers import submit

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER: Final = "b7ad6b7169203331"
TRACEPARENT: Final = f"00-{TRACE}-{CALLER}-01"


@dataclass
class Traced:
    """An application whose spans are kept."""

    app: App
    storage: Storage
    exporter: InMemorySpanExporter

    async def post(self, query: str, **headers: str) -> Any:
        """Ask by a POST in one piece."""
        found: Headers = {"content-type": "application/json", **headers}
        answer = await self.app.http.answer(None, found, encode({"query": query}))
        assert answer is not None
        return json.loads(answer.body)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> Any:
        (span,) = self.spans(name)
        return span


@asynccontextmanager
async def traced(database: str) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
        yield Traced(build_app(Settings(), storage, asyncio.Event(), Traces(provider)), storage, exporter)
    provider.shutdown()


async def test_a_request_its_change_and_its_delivery_are_one_trace(database: str) -> None:
    async with traced(database) as world, aclosing(world.storage.watch("T")) as watch:
        await anext(watch)
        assert "errors" not in await world.post(REPORT, traceparent=TRACEPARENT)
        await anext(watch)
        operation, change = world.span("mutation"), world.span("change UpdateProgress")
        deliver, group = world.span("deliver"), world.span("group")

        for span in (operation, change, deliver):
            assert format_trace_id(span.context.trace_id) == TRACE
        assert format_span_id(operation.parent.span_id) == CALLER
        assert operation.parent.is_remote
        assert operation.kind is SpanKind.SERVER
        assert operation.attributes["graphql.operation.type"] == "mutation"
        assert change.parent.span_id == operation.context.span_id
        assert change.attributes["spectral.task_id"] == "T"
        assert deliver.parent.span_id == change.context.span_id
        assert (deliver.attributes["spectral.seq"], deliver.attributes["spectral.subscribers"]) == (2, 1)
        # The group is everybody's, so it is a trace of its own; each leads to the other.
        assert group.context.trace_id != operation.context.trace_id
        assert [link.context.span_id for link in group.links] == [change.context.span_id]
        assert [link.context.span_id for link in change.links] == [group.context.span_id]
        assert operation.start_time <= change.start_time <= change.end_time <= operation.end_time


async def test_a_group_has_many_parents(database: str) -> None:
    async with traced(database) as world, aclosing(world.storage.watch("T")) as watch:
        await anext(watch)
        await asyncio.gather(*(world.post(REPORT) for _ in range(3)))
        await anext(watch)
        changes = world.spans("change UpdateProgress")
        assert len({span.context.trace_id for span in changes if span.context}) == 3
        groups = world.spans("group")
        linked = {link.context.span_id for group in groups for link in group.links}
        assert linked == {span.context.span_id for span in changes if span.context}
        # What they did to one task is told once, in the trace of the first; the others are linked to.
        assert sum(1 + len(span.links) for span in world.spans("deliver")) == 3


async def test_a_change_that_nobody_waits_for_has_its_place_in_a_group(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    work_off = Committer.work_off

    async def slowly(committer: Committer, group: list[Entry]) -> None:
        begun.set()
        await go_on.wait()
        await work_off(committer, group)

    async with traced(database) as world:
        monkeypatch.setattr(Committer, "work_off", slowly)
        first = asyncio.create_task(world.post(REPORT))
        await begun.wait()
        second = asyncio.create_task(world.post(REPORT))
        await until(lambda: world.storage.writer.waiting[0] == 1)
        second.cancel()
        await asyncio.wait({second})
        go_on.set()
        await first
        await until(lambda: len(world.spans("group")) == 2)
        (abandoned,) = [span for span in world.spans("change UpdateProgress") if not span.links]
        assert abandoned.attributes is not None
        assert abandoned.attributes["spectral.abandoned"]
        assert abandoned.context is not None
        linked = {link.context.span_id for group in world.spans("group") for link in group.links}
        assert abandoned.context.span_id in linked
        assert "ended span" not in caplog.text


async def test_what_fails_is_marked_and_quotes_nobody(database: str) -> None:
    async with traced(database) as world:
        query = 'mutation Secret { complete(taskId: "nobody-knows-this") { seq } }'
        assert "errors" in await world.post(query)
        operation, change = world.span("mutation Secret"), world.span("change Complete")
        assert operation.status.status_code is change.status.status_code is StatusCode.ERROR
        assert change.status.description == "TASK_NOT_FOUND"
        assert not operation.events
        assert "There is no task" not in operation.to_json() + change.to_json()


async def test_a_subscription_is_traced_until_it_has_begun(database: str) -> None:
    async with traced(database) as world:
        plans = world.app.plans
        from graphql_api.auth import Viewer
        from graphql_api.context import Context
        from storage import Permission

        viewer = Viewer(None, authenticated=False, permissions=frozenset(Permission))
        plan = await plans.plan('subscription S { taskUpdates(taskId: "T") { type } }', None)
        async with aclosing(plans.stream(plan, None, Context(world.storage, viewer))) as answers:
            assert b"SNAPSHOT" in await anext(answers)
            assert world.span("subscription S").end_time is not None


async def test_a_caller_that_does_not_sample_is_not_traced(database: str) -> None:
    async with traced(database) as world:
        await world.post(REPORT, traceparent=TRACEPARENT.removesuffix("01") + "00")
        assert world.exporter.get_finished_spans() == ()


@pytest.mark.parametrize("traceparent", ["", "00", "00-xyz-1-01", "ff-" + TRACEPARENT, "0" * 10_000])
async def test_a_traceparent_that_is_none_begins_a_trace(database: str, traceparent: str) -> None:
    async with traced(database) as world:
        assert "errors" not in await world.post(REPORT, traceparent=traceparent)
        assert world.span("mutation").parent is None


async def test_spans_are_sent_as_opentelemetrys_variables_say(database: str) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            import httpx

            async with program(
                "serve",
                SPECTRAL_DATABASE_URL=database,
                SPECTRAL_TRACES="on",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
                OTEL_EXPORTER_OTLP_COMPRESSION="none",
            ) as server:
                url = await server.url()
                async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http:
                    await http.post(url, json={"query": "query Traced { viewer { name } }"})
                server.terminate()
                assert await server.ended() == 0
        finally:
            collector.shutdown()
            thread.join()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    assert b"query Traced" in sent
    assert b"spectral-notify" in sent


async def test_a_collector_that_is_away_holds_up_nothing(database: str) -> None:
    import httpx

    async with program(
        "serve",
        SPECTRAL_DATABASE_URL=database,
        SPECTRAL_TRACES="on",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    ) as server:
        url = await server.url()
        async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http:
            assert (await http.post(url, json={"query": "{ viewer { name } }"})).status_code == 200
        server.terminate()
        async with asyncio.timeout(10):
            assert await server.ended() == 0


async def test_without_the_extra_traces_stop_the_start(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # As if it were not installed.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError('opentelemetry')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = await ends_with(1, "serve", SPECTRAL_DATABASE_URL=database, SPECTRAL_TRACES="on")
    assert "pip install 'spectral-notify[otel]'" in "".join(ended.log)


async def test_when_off_nothing_of_it_is_loaded(database: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, graphql_api.cli; print(any('opentelemetry' in name for name in sys.modules))",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "False"
    async with open_storage(database) as storage:
        build_app(Settings(), storage, asyncio.Event())
        assert storage.writer.tracer is None
        assert storage.feed.tracer is None
