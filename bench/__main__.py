"""How much the service takes for each thing that it does, beside the least that it could take.

``python -m bench`` starts what it needs in a temporary folder, measures in rounds, prints what it is doing to stderr
and the medians of all rounds to stdout. It is no test: it ends with status 0 whatever it measures, and with 1 only
when something did not work, because then the figures mean nothing.

docs/performance.md says what each row means.
"""

import argparse
import asyncio
import os
import platform
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import uvloop
from rich.console import Console

from bench.database import open_databases
from bench.orchestration import OTHERS as OTHERS_OF_ORCHESTRATION
from bench.orchestration import RATES
from bench.processes import LOAD, Failed
from bench.rows import IDLE_S, LOADS, OTHERS, Figures, Floor, Plan, Row, staged, take_samples
from bench.storage import INTERRUPTED
from storage import StartupError

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
START: Final = "<!-- made by python -m bench --write -->"
END: Final = "<!-- end -->"
ROUNDS: Final = 3
SECONDS: Final = 4
QUEUED: Final = 100_000
QUICK_IDLE_S: Final = 5.0
QUICK_QUEUED: Final = 2_000
# Beside the sockets of subscribers.
OTHER_FILES: Final = 500

MEASURED_AS_LOADS: Final = (*LOADS, *RATES)
MEASURED_OTHERWISE: Final = (*OTHERS_OF_ORCHESTRATION, *OTHERS)
ROWS: Final = (*MEASURED_AS_LOADS, *MEASURED_OTHERWISE)

Results: TypeAlias = Mapping[str, Sequence[Figures]]
"""By the titles of rows and floors, a value for each round."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the service beside what its parts cost."
    )
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"what to measure (default: all): {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds (default: {ROUNDS})")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"length of each measure (default: {SECONDS})")
    parser.add_argument("--quick", action="store_true", help="one round of one second each, to see that all works")
    parser.add_argument("--authorization", action="store_true", help="send an API key with everything")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md too")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.rows) - set(names)):
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(names)}")
    if arguments.seconds < 1 or arguments.rounds < 1:
        parser.error("--seconds and --rounds must be at least 1")
    if arguments.write and (arguments.rows or arguments.quick):
        parser.error("--write needs a full run: no rows by name, and not --quick")
    return arguments


def _check_tools() -> None:
    if not Path("/proc/self/stat").exists():
        sys.exit("The benchmark reads processor times from /proc, so it runs on Linux only.")
    if shutil.which("wrk") is None:
        sys.exit("The benchmark needs wrk for its HTTP load: install it (on Debian: apt-get install wrk).")
    if not LOAD.exists():
        sys.exit("The load generator for subscriptions is not compiled: run `make bench`, which needs a C compiler.")


def _possible(rows: Sequence[Row], console: Console) -> list[Row]:
    """The rows whose sockets this process may have."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    possible = []
    for row in rows:
        if files == resource.RLIM_INFINITY or row.sockets + OTHER_FILES <= files:
            possible.append(row)
        else:
            console.print(f"{row.name} is left out: it needs {row.sockets:,} sockets, and `ulimit -Hn` is {files:,}.")
    return possible


async def _measure(folder: Path, arguments: argparse.Namespace, console: Console) -> str:
    """The table."""
    this = asyncio.current_task()
    assert this is not None
    # As Ctrl-C does: stop the servers and remove the folder.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    rows = _possible([row for row in ROWS if row.name in (arguments.rows or [row.name])], console)
    rounds, seconds, idle_s, queued = arguments.rounds, arguments.seconds, IDLE_S, QUEUED
    if arguments.quick:
        rounds, seconds, idle_s, queued = 1, 1, QUICK_IDLE_S, QUICK_QUEUED
    results: dict[str, list[Figures]] = defaultdict(list)
    start = time.monotonic()
    console.print("Making and filling a database …")
    async with open_databases(folder / "data") as databases:
        plan = Plan(databases, folder, seconds, idle_s, databases.key if arguments.authorization else None, queued)
        plan.write()
        samples = await take_samples(plan)
        for number in range(1, rounds + 1):
            async with staged(plan, samples, number) as stage:
                for row in rows:
                    parts: Sequence[Row | Floor] = (row, *row.floors)
                    for part in parts:
                        figures = await part.measure(stage)
                        results[part.title].append(figures)
                        said = ", ".join(f"{name} {figure:,.4g}" for name, figure in figures.items())
                        console.print(f"round {number} of {rounds}: {part.title}: {said}")
        console.print(f"Measured for {time.monotonic() - start:.0f} s.")
        machine = _machine(databases.version)
    how = f"Medians of {rounds} round{'s' if rounds > 1 else ''} of {seconds} s" + (
        ", with an API key." if arguments.authorization else "."
    )
    return "\n".join([machine, how, "", *_load_table(rows, results), *_other_table(rows, results)])


def _machine(postgres: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} core{'s' if cores > 1 else ''} of {model}, shared by server, PostgreSQL and load; "
        f"Python {platform.python_version()}, PostgreSQL {postgres}."
    )


# ---------------------------------------------------------------- tables


def _load_table(rows: Sequence[Row], results: Results) -> Iterator[str]:
    loads = [row for row in MEASURED_AS_LOADS if row in rows]
    if not loads:
        return
    yield _line("", "per second", "p50", "p99", "CPU of the server", "CPU of PostgreSQL", "to the floor")
    yield _line("---", *["---:"] * 6)
    for row in loads:
        figures = _medians(results[row.title])
        ratios = [ratio for floor in row.floors if (ratio := _ratio(row, floor, results))]
        yield _line(row.title, *_load_cells(figures), ", ".join(ratios))
        for floor in row.floors:
            yield _line(f"— floor: {floor.title}", *_load_cells(_medians(results[floor.title])), "")
    yield ""


def _load_cells(figures: Figures) -> Iterator[str]:
    yield f"{figures['per_s']:,.0f}"
    for name, unit in (("p50_ms", "ms"), ("p99_ms", "ms"), ("cpu_us", "µs"), ("postgres_us", "µs")):
        yield f"{_short(figures[name])} {unit}" if name in figures else ""


def _ratio(row: Row, floor: Floor, results: Results) -> str:
    # Round by round: what made the one slow made the other slow too.
    rounds = list(zip(results[row.title], results[floor.title], strict=True))
    if floor.rate_aim is not None:
        ratio = statistics.median(ours["per_s"] / obvious["per_s"] for ours, obvious in rounds)
        return f"{ratio:.1f}x its rate (aim >= {floor.rate_aim:g}x)"
    if floor.aim is not None:
        ratio = statistics.median(ours["cpu_us"] / least["cpu_us"] for ours, least in rounds)
        return f"{ratio:.1f}x (aim <= {floor.aim:g}x)"
    return ""


def _other_table(rows: Sequence[Row], results: Results) -> Iterator[str]:
    measured = {row.name: row for row in MEASURED_OTHERWISE if row in rows}
    if not measured:
        return
    yield _line("", "spectral-notify", "floor: broadcast")
    yield _line("---", "---:", "---:")
    if row := measured.get("idle"):
        ours, floor = _medians(results[row.title]), _medians(results[row.floors[0].title])
        for title, name, unit in (
            ("memory of an idle subscription", "rss_kb", "KB"),
            ("CPU to connect and subscribe", "connect_us", "µs"),
            (f"CPU while nothing happens, {row.title}", "idle_percent", "% of a core"),
        ):
            yield _line(title, f"{_short(ours[name])} {unit}", f"{_short(floor[name])} {unit}")
    if row := measured.get("resume"):
        figures = _medians(results[row.title])
        yield _line(f"{row.title}, until all are served", f"{_short(figures['resume_s'])} s", "")
        yield _line("queries for that", f"{figures['resume_queries']:,.0f}", "")
        yield _line("CPU for each of them", f"{_short(figures['resume_us'])} µs", "")
    if row := measured.get("resync"):
        figures = _medians(results[row.title])
        yield _line(row.title, f"{_short(figures['resync_ms'])} ms", "")
        yield _line("longest stall of the event loop meanwhile", f"{_short(figures['stall_ms'])} ms", "")
    if row := measured.get("due"):
        figures = _medians(results[row.title])
        yield _line(f"{row.title}, until all are", f"{_short(figures['due_s'])} s", "")
        yield _line("CPU for each of them", f"{_short(figures['due_us'])} µs", "")
        yield _line("p99 of 200 updates per second meanwhile", f"{_short(figures['p99_ms'])} ms", "")
        yield _line("p99 of them without anything due", f"{_short(figures['quiet_p99_ms'])} ms", "")
        yield _line("scans of a whole table", f"{figures['scans']:,.0f}", "")
    for name in ("wake", "wake-across"):
        if row := measured.get(name):
            figures = _medians(results[row.title])
            yield _line(f"{row.title}: p50 (aim < 20 ms)", f"{_short(figures['p50_ms'])} ms", "")
            yield _line("p99 of it", f"{_short(figures['p99_ms'])} ms", "")
    if row := measured.get("start"):
        figures = _medians(results[row.title])
        yield _line("from start to the first answer", f"{_short(figures['start_ms'])} ms", "")
        yield _line("CPU of the server until then", f"{_short(figures['start_cpu_ms'])} ms", "")
    yield ""


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _write(table: str) -> None:
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise Failed(f'{PAGE} must hold "{START}" and "{END}".')
    PAGE.write_text(f"{before}{START}\n\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    arguments = _arguments()
    _check_tools()
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        with tempfile.TemporaryDirectory(prefix="spectral-bench-") as folder:
            # The account that runs PostgreSQL for root has to walk through.
            table = uvloop.run(_measure(Path(folder), arguments, console))
        if arguments.write:
            _write(table)
    except (StartupError, Failed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped; there is nothing to show.")
        sys.exit(INTERRUPTED)
    sys.stdout.write(f"{table}\n")


if __name__ == "__main__":
    main()
