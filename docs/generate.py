"""Write into these pages what the code knows: statuses and times, settings, error codes.

A part that is made stands between two comments that name it, and everything around it is written by hand::

    python docs/generate.py            write
    python docs/generate.py --check    fail with a sentence when a page is stale
"""

import argparse
import asyncio
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import HttpUrl, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

import graphql_api.errors
from graphql_api import batches, program
from graphql_api.app import build_app
from graphql_api.context import OPERATION_BYTES_MAX, OPERATION_EVENTS_MAX
from graphql_api.execution import complexity, documents, json
from graphql_api.metrics import Serving, of_workers
from graphql_api.settings import PREFIX, Settings
from graphql_api.wire import http, websocket
from storage import (
    CREATE_MANY_TASKS_MAX,
    REPORTS_MAX,
    AddEvent,
    Cancel,
    Command,
    Complete,
    Create,
    EventType,
    Fail,
    Keys,
    Options,
    Refusal,
    Release,
    Retry,
    Status,
    Storage,
    Task,
    UpdateProgress,
)
from storage.claimer import Claimer
from storage.commands import Lease, Settle, Tick
from storage.feed import Feed
from storage.follower import Follower
from storage.lifecycle import ENTERED_AT, TRANSITIONS, Move, decide
from storage.live import LiveLists
from storage.live_follower import LiveFollower
from storage.pool import open_pool
from storage.queues import Queues
from storage.reader import Reader
from storage.signing_keys import SigningKeys
from storage.task import OnDependencyFailure, Outcome
from storage.task_tokens import TaskTokens
from storage.writer import Writer
from terminal.commands import PANELS
from terminal.exits import Exit

DOCS: Final = Path(__file__).parent
EXAMPLES: Final = Path(graphql_api.errors.__file__).parent.parent / "examples"
_INSTANT: Final = datetime(2026, 1, 1, tzinfo=UTC)

# What clients call each move.
_MUTATIONS: Final[Mapping[Move, str]] = {
    Move.NOTE: "`addEvent` without progress, or a dependency is done",
    Move.PROGRESS: "`updateProgress`, `addEvent` with progress",
    Move.COMPLETE: "`complete`",
    Move.FAIL: "`fail`, with no attempt left or wanted",
    Move.CANCEL: "`cancel`, or a dependency did not succeed",
    Move.CLAIM: "`claim`",
    Move.RELEASE: "`release`",
    Move.RETRY: "`fail` or a lapsed lease, with attempts left",
    Move.TIME_OUT: "expired, or a lapsed lease with no attempt left",
}
IGNORE: Final = OnDependencyFailure.IGNORE
_TYPES: Final[Mapping[Any, str]] = {
    bool: "`true` or `false`",
    str: "text",
    SecretStr: "text, secret",
    Path: "path",
    HttpUrl: "URL",
}


# Options that every command for tasks has.
_OF_ALL: Final = ("--json", "--url", "--patience")
# What Prometheus calls a metric beside its name.
_SUFFIXES: Final[Mapping[str, str]] = {"counter": "_total", "info": "_info"}


def transitions() -> Iterator[str]:
    """The table of moves and statuses."""
    yield from _table(
        ["", *(f"in {status}" for status in Status)],
        ([_MUTATIONS[move], *(_outcome(status, row.get(status)) for status in Status)] for move, row in _moves()),
    )


def diagram() -> Iterator[str]:
    """The same as a picture."""
    first = Create(task_id="any").status
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {first}: create"
    for move, row in _moves():
        for before, after in row.items():
            yield f"    {before} --> {after}: {_MUTATIONS[move].replace('`', '')}"
    yield "```"


def events() -> Iterator[str]:
    """What each mutation writes, and what time and other tasks do, found by asking the rules."""
    task = decide(None, Create(task_id="any"), _INSTANT)
    proof = "t"
    asked = Options(queue="q", depends_on=["a"], retry=Retry(max_attempts=2), on_dependency_failure=IGNORE)
    dependent = decide(None, Create(task_id="any", options=asked), _INSTANT)
    ready = decide(dependent, Settle(task_id="any", on="a", outcome=Outcome.SUCCESS), _INSTANT)
    claimed = decide(ready, Lease(task_id="any", worker="w", token=proof, lease_s=60), _INSTANT)
    expiring = decide(None, Create(task_id="any", options=Options(expires_at=_INSTANT)), _INSTANT)
    strict = decide(None, Create(task_id="any", options=Options(depends_on=["a"])), _INSTANT)
    later = _INSTANT + timedelta(minutes=2)
    assert task is not None
    samples: Sequence[tuple[str, Task | None, Command]] = [
        ("`create`", None, Create(task_id="any")),
        ("`addEvent`", task, AddEvent(task_id="any", event_type=EventType.LOG, message="m")),
        ("`updateProgress`", task, UpdateProgress(task_id="any", progress=50)),
        ("`complete`", task, Complete(task_id="any")),
        ("`fail`", task, Fail(task_id="any", error="e")),
        ("`cancel`", task, Cancel(task_id="any")),
        ("`claim`", ready, Lease(task_id="any", worker="w", token=proof, lease_s=60)),
        ("`release`", claimed, Release(task_id="any", token=proof)),
        ("`fail` with attempts left", claimed, Fail(task_id="any", error="e")),
        ("a lease that runs out", claimed, Tick(task_id="any")),
        ("`expiresAt` passes", expiring, Tick(task_id="any")),
        ("a dependency succeeds", dependent, Settle(task_id="any", on="a", outcome=Outcome.SUCCESS)),
        ("a dependency fails, ignored", dependent, Settle(task_id="any", on="a", outcome=Outcome.FAILED)),
        ("a dependency is deleted", strict, Settle(task_id="any", on="a", outcome=Outcome.DELETED)),
    ]
    own = {"m": "the caller's", "e": "the `error`"}
    rows = []
    for name, before, command in samples:
        after = decide(before, command, later)
        assert after is not None
        event = after.last_event
        assert event is not None
        added = isinstance(command, AddEvent)
        rows.append(
            [
                name,
                "the caller's" if added else f"`{event.event_type}`",
                own.get(event.message, f'"{event.message}"'),
                "the caller's, if any" if added else "none" if event.progress is None else str(event.progress),
            ]
        )
    yield from _table(["what happens", "`eventType`", "`message`", "`progress` of the event"], rows)


def times() -> Iterator[str]:
    """Which time each status sets."""
    rows = ([str(status), f"`{_camel(ENTERED_AT[status])}`"] for status in Status if status in ENTERED_AT)
    yield from _table(["entering", "sets"], rows)


def settings() -> Iterator[str]:
    """Every setting."""
    rows = (
        [f"`{PREFIX}{name.upper()}`", _kind(field), _default(field), field.description or ""]
        for name, field in Settings.model_fields.items()
    )
    yield from _table(["setting", "value", "default", "what it is"], rows)


def codes() -> Iterator[str]:
    """Every code of an error."""
    rows = [[f"`{refusal.code}`", _first_paragraph(refusal)] for refusal in _refusals(Refusal)]
    rows.append(["`INTERNAL_SERVER_ERROR`", "A fault of the server. The log has the traceback under the same `id`."])
    yield from _table(["code", "meaning"], rows)


def metrics() -> Iterator[str]:
    """Every metric of the program's own."""
    # Nothing is opened: what is not used needs no database.
    pool = open_pool(
        "postgresql://nobody@localhost/none",
        connections_max=10,
        pool_wait_s=1,
        statement_timeout_ms=1,
        lock_timeout_ms=1,
    )
    feed, queues, reader = Feed(), Queues(), Reader(pool)
    live = LiveLists(feed)
    live_follower = LiveFollower(live, reader)
    follower = Follower(feed, reader, queues, live_follower)
    writer = Writer(pool, feed, queues, groups_max=1, group_commands_max=1, waiting_commands_max=1, wait_s=1)
    claimer = Claimer(pool, writer.aftermath, writer.submit)
    keys, signing_keys = Keys(pool), SigningKeys(pool)
    task_tokens = TaskTokens(signing_keys, keys)
    storage = Storage(
        pool,
        feed,
        live,
        live_follower,
        queues,
        follower,
        None,
        writer,
        claimer,
        None,
        reader,
        keys,
        signing_keys,
        task_tokens,
    )
    serving = Serving(storage, build_app(Settings(), storage, asyncio.Event()))
    rows = [
        [
            f"`{family.name}{_SUFFIXES.get(family.type, '')}`",
            family.type,
            ", ".join(f"`{label}`" for label in vars(family)["_labelnames"]),
            family.documentation,
        ]
        for family in (*serving.counted(), *of_workers({}, 0))
    ]
    yield from _table(["metric", "type", "labels", "what it is"], rows)


def limits() -> Iterator[str]:
    """What one client can do, and what happens then."""
    parse, validation = "`GRAPHQL_PARSE_FAILED`", "`GRAPHQL_VALIDATION_FAILED`"
    too_large, bad, limited = "`TOO_LARGE`", "`BAD_USER_INPUT`", "`RATE_LIMITED`, 429"
    rows: list[tuple[str, int | str, str]] = [
        ("tokens of a document", documents.TOKENS_MAX, parse),
        ("characters of a document", documents.DOCUMENT_CHARACTERS_MAX, too_large),
        (
            "characters of a name, of a number",
            _several(documents.NAME_CHARACTERS_MAX, documents.NUMBER_CHARACTERS_MAX),
            validation,
        ),
        ("levels", documents.DEPTH_MAX, validation),
        ("fields, with fragments spread", documents.FIELDS_MAX, validation),
        ("root fields, and so aliases of one", documents.ROOT_FIELDS_MAX, validation),
        ("selections of one name in one place", documents.NAMESAKES_MAX, validation),
        ("directives", documents.DIRECTIVES_MAX, validation),
        ("operations of a document", documents.OPERATIONS_MAX, validation),
        ("`__schema` and `__type`", documents.INTROSPECTIONS_MAX, validation),
        ("fragments that spread themselves", "none", validation),
        ("what an operation costs", "complexity_max", too_large),
        ("events that an operation reads, their bytes", _several(OPERATION_EVENTS_MAX, OPERATION_BYTES_MAX), too_large),
        ("page of a list", complexity.PAGE_MAX, bad),
        ("items of `createMany`, of `report`", _several(CREATE_MANY_TASKS_MAX, REPORTS_MAX), bad),
        ("tasks that one `deleteMany` deletes", batches.DELETED_MAX, "the rest stays, until it is asked again"),
        ("time of a query", "query_timeout_ms", "`UNAVAILABLE`, 503"),
        ("levels of JSON, variables with it", json.LEVELS_MAX, bad),
        ("operations of an HTTP request", 1, f"{bad}: batches are not served"),
        (
            "bytes of a body, with its variables; of a socket's message",
            "body_bytes_max",
            f"{too_large}, 413; close 1009",
        ),
        ("time for a body to arrive", "body_timeout_ms", f"{bad}, 408"),
        ("bytes of headers, of a URL", http.HEADERS_BYTES_MAX, "431, 414"),
        ("time for headers to arrive", f"{http.HEADERS_TIMEOUT_S:g} s", "the connection is closed"),
        ("requests that wait on one connection", http.PIPELINED_REQUESTS_MAX, "400"),
        ("operations a second from one address", "operations_per_second_per_address_max", limited),
        ("operations a second with one credential", "operations_per_second_per_credential_max", limited),
        (
            "wrong credentials a minute from one address",
            "failed_sign_ins_per_minute_per_address_max",
            f"{limited}; close 1013",
        ),
        ("sockets and event streams of one address", "sockets_per_address_max", f"{limited}, also to a handshake"),
        ("sockets and event streams of one credential", "sockets_per_credential_max", f"{limited}; close 1013"),
        ("time to `connection_init`", "connection_init_timeout_ms", "close 4408"),
        ("time without an operation", "socket_idle_timeout_ms", "close 4410"),
        ("operations open on a socket", "operations_per_socket_max", bad),
        ("bytes of the messages by which they were asked for", "twice as many as one message may have", too_large),
        ("messages and pings a second on a socket", "messages_per_second_per_socket_max", "they are read more slowly"),
        ("fragments of a socket's message", websocket.FRAGMENTS_MAX, "close 1008"),
    ]
    yield from _table(["what", "bound", "at the bound"], ([what, *_bound(bound), then] for what, bound, then in rows))


def exits() -> Iterator[str]:
    """Every code with which the command line ends."""
    yield from _table(["code", "meaning"], [[str(int(code)), code.meaning] for code in Exit])


def commands() -> Iterator[str]:
    """Every command, with its arguments and options."""
    group = get_command(program.app)
    assert isinstance(group, TyperGroup)
    for panel in PANELS:
        yield f"### {panel}"
        yield ""
        for name, command in group.commands.items():
            if getattr(command, "rich_help_panel", None) == panel:
                yield from _command(name, command)
    yield f"### {program.SERVER}"
    yield ""
    yield from _table(["command", "what it does"], [[f"`{name}`", said] for name, said in program.COMMANDS.items()])


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if isinstance(parameter, TyperArgument)]
    options = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
    yield f"#### {name}"
    yield ""
    yield f"`spectral-notify {' '.join([name, *(_metavar(one) for one in arguments), '[OPTIONS]'])}`"
    yield ""
    yield from textwrap.dedent(command.help).strip().splitlines()
    yield ""
    # Said once for all, above the commands.
    own = [option for option in options if option.opts[0] not in _OF_ALL]
    rows = [
        [f"`{', '.join(sorted([*option.opts, *option.secondary_opts], key=len))}{_value(option)}`", _help(option)]
        for option in own
    ]
    yield from _table(["argument, option", ""], [[f"`{_metavar(one)}`", one.help or ""] for one in arguments] + rows)
    yield ""


def _metavar(argument: TyperArgument) -> str:
    name = (argument.metavar or argument.name or "").strip("{}")
    return name if argument.required else f"[{name}]"


def _value(option: TyperOption) -> str:
    return "" if option.is_flag else f" {option.metavar or ''}".rstrip()


def _help(option: TyperOption) -> str:
    default = option.default
    shown = None if option.is_flag or default is None or not option.show_default else getattr(default, "value", default)
    return (option.help or "") + ("" if shown is None else f" The default is {shown}.")


def _several(*numbers: int) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _bound(bound: int | str) -> list[str]:
    if not isinstance(bound, str):
        return [f"{bound:,}"]
    field = Settings.model_fields.get(bound)
    return [bound if field is None else f"`{PREFIX}{bound.upper()}`, {field.default:,}"]


def shown(name: str, language: str) -> Callable[[], Iterator[str]]:
    """An example, which the tests run, as it is."""

    def example() -> Iterator[str]:
        yield f"```{language}"
        yield (EXAMPLES / name).read_text(encoding="utf-8").rstrip("\n")
        yield "```"

    return example


PARTS: Final[Mapping[str, Mapping[str, Callable[[], Iterator[str]]]]] = {
    "cli.md": {"exits": exits, "commands": commands},
    "lifecycle.md": {"transitions": transitions, "diagram": diagram, "events": events, "times": times},
    "operations.md": {"settings": settings, "metrics": metrics},
    "clients.md": {
        "codes": codes,
        "apollo": shown("apollo/client.ts", "ts"),
        "react-native": shown("react-native/TaskScreen.tsx", "tsx"),
        "codegen": shown("codegen.ts", "ts"),
    },
    "security.md": {"limits": limits},
}


def render(text: str, parts: Mapping[str, Callable[[], Iterator[str]]]) -> str:
    """The page with its made parts as they should be."""
    for name, make in parts.items():
        start, end = f"<!-- made by generate.py: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f'A page must hold "{start}" and "{end}".')
        text = before + "\n".join([start, "", *make(), "", end]) + after
    return text


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description="Write into the pages what the code knows.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    check = parser.parse_args().check
    stale = []
    for name, parts in PARTS.items():
        page = DOCS / name
        written = page.read_text(encoding="utf-8")
        rendered = render(written, parts)
        if rendered != written and check:
            stale.append(f"docs/{name}")
        elif rendered != written:
            page.write_text(rendered, encoding="utf-8")
    if stale:
        sys.exit(f"{' and '.join(stale)} no longer say what the code does: run `make schema` and read the difference.")


def _moves() -> Iterator[tuple[Move, Mapping[Status, Status]]]:
    yield from TRANSITIONS.items()


def _outcome(before: Status, after: Status | None) -> str:
    if after is None:
        return "refused"
    return "stays" if after is before else f"→ {after}"


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _kind(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    choices = get_args(annotation)
    if NoneType in choices:
        (annotation,) = (choice for choice in choices if choice is not NoneType)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    choices = get_args(annotation)
    bounds: dict[type, Any] = {type(bound): bound for bound in field.metadata}
    if annotation is int:
        return f"{bounds[Ge].ge} to {bounds[Le].le}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _alternatives([choice.value for choice in annotation])
    if choices and all(isinstance(choice, str) for choice in choices):
        return _alternatives(choices)
    if choices == (str, ...):
        return "texts, separated by commas"
    return _TYPES[annotation]


def _alternatives(choices: Sequence[str]) -> str:
    *others, last = (f"`{choice}`" for choice in choices)
    return f"{', '.join(others)} or {last}"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        # Made when the program starts; the description says of what.
        return "depends"
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value}`"


def _refusals(root: type[Refusal]) -> Iterator[type[Refusal]]:
    for refusal in root.__subclasses__():
        # One without a code of its own is a special case of its parent.
        if "code" in vars(refusal):
            yield refusal
        yield from _refusals(refusal)


def _first_paragraph(thing: type) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    for row in rows:
        yield _row([cell.replace("|", "\\|") for cell in row])


def _row(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


if __name__ == "__main__":
    main()
