"""Traces, by OpenTelemetry: from an operation through the group that committed its change to those who were told of it.

An operation's span has a child for each change that it asks for, from the queue to the answer; and that has one for the
telling of subscribers. So what a request led to is one trace, the one that its `traceparent` names if it has any. The
group is a trace of its own, because many requests share it: it links to its changes, and they to it.

This module is imported only when traces are on; without it, what is left of them is an `if` for each change.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry.context import Context as SpanContext
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Receive, Scope, Send

from graphql_api.context import Context
from graphql_api.execution.http import GraphQLOverHTTP
from graphql_api.execution.plan import Plan, Plans, RequestRefused, Stream
from graphql_api.wire.headers import Headers, read_headers
from graphql_api.wire.http import Answer
from storage import Command, CreateMany, Refusal, Update

# How long the end of the program waits for the last spans to be sent.
FLUSH_WITHIN_S: Final = 2.0
# Changes that the span of a group links to.
LINKS_MAX: Final = 128
_W3C: Final = TraceContextTextMapPropagator()
# By task: the changes of the group that is being worked off.
_changes: ContextVar[Mapping[str, list[Span]] | None] = ContextVar("changes", default=None)


@asynccontextmanager
async def open_traces() -> AsyncIterator["Traces"]:
    """Traces that are sent as OpenTelemetry's own variables say."""
    resource = Resource.create({SERVICE_VERSION: version("spectral-notify")})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "spectral-notify"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Traces(provider)
    finally:
        # A collector that is away holds it up for longer than we wait.
        ending = threading.Thread(target=provider.shutdown, name="traces: end", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_WITHIN_S)


class Traces:
    """Makes the spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("spectral-notify")

    def endpoint(self, endpoint: GraphQLOverHTTP) -> "TracedHTTP":
        """The endpoint, with the trace that a request belongs to."""
        return TracedHTTP(endpoint)

    def plans(self, *arguments: Any, **options: Any) -> Plans:
        """Plans whose operations are traced."""
        return TracedPlans(self, *arguments, **options)

    @contextmanager
    def operation(self, plan: Plan) -> Iterator[Span]:
        """While it lasts, an operation runs."""
        kind = plan.operation_type.value
        attributes = {"graphql.operation.type": kind}
        if plan.name is not None:
            attributes["graphql.operation.name"] = plan.name
        with self._tracer.start_as_current_span(
            kind if plan.name is None else f"{kind} {plan.name}",
            kind=SpanKind.SERVER,
            attributes=attributes,
            # What they say may quote what a client sent.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except RequestRefused as refused:
                _fail(span, refused.errors[0]["extensions"]["code"])
                raise
            except Exception as error:
                _fail(span, type(error).__name__)
                raise

    # What the storage tells.

    def change(self, command: Command | CreateMany, outcome: asyncio.Future[Any]) -> Span | None:
        """A command was taken."""
        if not get_current_span().is_recording():
            return None
        task_ids = command.task_ids
        of: dict[str, str | int] = {"spectral.tasks": len(task_ids)}
        span = self._tracer.start_span(
            f"change {type(command).__name__}",
            attributes={"spectral.task_id": task_ids[0]} if len(task_ids) == 1 else of,
        )
        outcome.add_done_callback(lambda done: _end(span, done))
        return span

    @contextmanager
    def group(self, changes: Sequence[tuple[str, Span | None]]) -> Iterator[None]:
        """A group is worked off."""
        traced: dict[str, list[Span]] = {}
        for task_id, span in changes:
            if span is not None:
                traced.setdefault(task_id, []).append(span)
        if not traced:
            yield
            return
        spans = [span for spans in traced.values() for span in spans]
        with self._tracer.start_as_current_span(
            "group",
            context=SpanContext(),
            links=[Link(span.get_span_context()) for span in spans[:LINKS_MAX]],
            attributes={"spectral.commands": len(changes)},
        ) as group:
            for span in spans:
                # One that nobody waits for has ended.
                if span.is_recording():
                    span.add_link(group.get_span_context())
            token = _changes.set(traced)
            try:
                yield
            finally:
                _changes.reset(token)

    def delivery(self, update: Update, subscribers: int) -> Callable[[], None]:
        """Subscribers are told of a change that was committed here."""
        changes = (_changes.get() or {}).get(update.task.task_id)
        if not changes:
            return _nothing
        first, *others = changes
        span = self._tracer.start_span(
            "deliver",
            context=set_span_in_context(first),
            links=[Link(other.get_span_context()) for other in others[:LINKS_MAX]],
            attributes={
                "spectral.task_id": update.task.task_id,
                "spectral.seq": update.task.seq,
                "spectral.subscribers": subscribers,
            },
        )
        return span.end


class TracedHTTP:
    """GraphQL over HTTP; what a request leads to belongs to the trace that its `traceparent` names."""

    def __init__(self, endpoint: GraphQLOverHTTP) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with _trace_of(read_headers(scope["headers"])):
            await self._endpoint(scope, receive, send)

    async def answer(self, peer: str | None, headers: Headers, body: bytes) -> Answer | None:
        """The answer to a POST that came in one piece."""
        with _trace_of(headers):
            return await self._endpoint.answer(peer, headers, body)


class TracedPlans(Plans):
    """Plans whose operations are traced."""

    def __init__(self, traces: Traces, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._traces = traces

    async def run(self, plan: Plan, variables: dict[str, Any] | None, context: Context) -> bytes:
        """Run a query or a mutation; its answer as JSON."""
        with self._traces.operation(plan) as span:
            answer = await super().run(plan, variables, context)
            # They come before the data.
            if answer.startswith(b'{"errors"'):
                _fail(span, "errors")
            return answer

    async def open(self, plan: Plan, variables: dict[str, Any] | None, context: Context) -> Stream:
        """Begin a subscription."""
        with self._traces.operation(plan):
            return await super().open(plan, variables, context)


@contextmanager
def _trace_of(headers: Headers) -> Iterator[None]:
    if "traceparent" not in headers:
        yield
        return
    token = contexts.attach(_W3C.extract(headers, SpanContext()))
    try:
        yield
    finally:
        contexts.detach(token)


def _end(span: Span, done: asyncio.Future[Any]) -> None:
    if done.cancelled():
        # Whoever asked is gone; the change is made nevertheless.
        span.set_attribute("spectral.abandoned", True)
    elif (error := done.exception()) is not None:
        _fail(span, error.code if isinstance(error, Refusal) else type(error).__name__)
    span.end()


def _fail(span: Span, why: str) -> None:
    span.set_status(Status(StatusCode.ERROR, why))


def _nothing() -> None:
    pass
