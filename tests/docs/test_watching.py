"""The dashboard and the alerts: whatever they name is there on a running server, and Prometheus understands them."""

import json
import re
import shutil
import subprocess
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from storage import Create, open_storage
from tests.docs.pages import TOP
from tests.graphql_api.clients import WAIT_S
from tests.graphql_api.test_metrics import REPORT, metrics_url, read, scrape
from tests.graphql_api.test_server import program, watching
from tests.storage.helpers import submit

DASHBOARD: Final[dict[str, Any]] = json.loads((TOP / "docs" / "grafana.json").read_text())
ALERTS: Final = TOP / "docs" / "alerts.yaml"
RULES: Final[list[dict[str, Any]]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# By what it stands in, and there by its place.
QUERIES: Final = {
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
}
PROMTOOL: Final = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


def names_in(query: str) -> set[str]:
    """The metrics that a query names."""
    return set(re.findall(r"\b(?:spectral|process)_\w+", _STRING.sub('""', query)))


def without_variables(query: str) -> str:
    """The query as Grafana sends it."""
    return re.sub(r"\$(job|instance)\b", ".*", query.replace("$__rate_interval", "5m"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)


async def test_every_metric_that_is_named_is_there_and_has_those_labels(database: str) -> None:
    async with open_storage(database) as storage:
        await submit(storage, Create(task_id="T"))
    async with (
        program("serve", "--workers", "2", SPECTRAL_DATABASE_URL=database, SPECTRAL_METRICS_PORT=0) as server,
        httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http,
    ):
        url, at = await server.url(), await metrics_url(server)
        async with watching(url, "T") as watcher:
            await http.post(url, json={"query": REPORT})
            await watcher.take()
            # Codes of closes are there when there was one.
            await watcher.send("no JSON")
            await watcher.wire.wait_closed()
            found = read(await scrape(http, at))
    for place, query in QUERIES.items():
        named = names_in(query)
        assert named or query.startswith(("up{", "sum(up{")), place
        assert named <= found.keys(), place
        for name in named:
            labels = {label for sample in found[name] for label, _ in sample} | {"job", "instance"}
            for selector in re.findall(rf"\b{name}\{{([^}}]*)\}}", query):
                assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", _STRING.sub("", selector))) <= labels, place
    # And the other way round: nothing is counted that nobody looks at, but for the bytes of the queue and which
    # process it is.
    own = {re.sub(r"_(sum|count|bucket)$", "", name) for name in found if name.startswith("spectral_")}
    looked_at = {re.sub(r"_(sum|count|bucket)$", "", name) for query in QUERIES.values() for name in names_in(query)}
    assert own - looked_at == {
        "spectral_commands_waiting_bytes",
        "spectral_plan_seconds",
        "spectral_plans",
        "spectral_process_id",
    }


@pytest.mark.parametrize("place", QUERIES)
def test_queries_are_balanced(place: str) -> None:
    opened: list[str] = []
    for sign in re.sub(r"[^()\[\]{}]", "", _STRING.sub("", QUERIES[place])):
        if sign in "([{":
            opened.append(sign)
        else:
            assert opened
            assert opened.pop() + sign in ("()", "[]", "{}")
    assert not opened


def test_the_dashboard_has_what_grafana_needs() -> None:
    assert {"uid", "title", "schemaVersion", "version", "panels", "templating", "time"} <= DASHBOARD.keys()
    assert DASHBOARD["schemaVersion"] >= 36
    # Grafana gives it a number of its own; one that is there would take the place of another dashboard.
    assert DASHBOARD.get("id") is None
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert variables[name]["query"]["query"].startswith("label_values(spectral_build_info")
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in PANELS:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= {*variables, "__rate_interval"}
            # Whoever chooses a server sees that one.
            assert 'job=~"$job"' in target["expr"]
            assert 'instance=~"$instance"' in target["expr"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_no_panel_covers_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert all(a["gridPos"]["y"] <= b["gridPos"]["y"] for a, b in pairwise(DASHBOARD["panels"]))


def test_every_alert_says_what_it_means_and_the_page_what_to_do() -> None:
    page = (TOP / "docs" / "operations.md").read_text()
    for rule in RULES:
        assert {"summary", "description"} == rule["annotations"].keys()
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert f"| `{rule['alert']}` |" in page


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    checked = promtool("check", "rules", ALERTS)
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_promtool
def test_prometheus_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": without_variables(query)} for number, query in enumerate(QUERIES.values())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert (checked.returncode, checked.stderr) == (0, ""), checked


# For each alert, series of a minute's steps that make it fire; all of one server.
FIRING: Final[dict[str, dict[str, str]]] = {
    "SpectralNotScraped": {"up": "0x30"},
    "SpectralWorkerSilent": {"spectral_workers": "4x30", "spectral_workers_up": "3x30"},
    "SpectralWorkerReplaced": {"spectral_workers_replaced_total": "0x20 1x10"},
    "SpectralErrorRate": {
        'spectral_operations_total{outcome="ok"}': "0+98x30",
        'spectral_operations_total{outcome="UNAVAILABLE"}': "0+2x30",
    },
    "SpectralFault": {'spectral_errors_total{code="INTERNAL_SERVER_ERROR"}': "0x20 1x10"},
    "SpectralDeliveryLag": {
        'spectral_delivery_seconds_bucket{way="direct",le="1.0"}': "0x30",
        'spectral_delivery_seconds_bucket{way="direct",le="2.5"}': "0+10x30",
        'spectral_delivery_seconds_bucket{way="direct",le="+Inf"}': "0+10x30",
    },
    "SpectralSubscribersBehind": {
        'spectral_delivery_seconds_bucket{way="buffered",le="5.0"}': "0x30",
        'spectral_delivery_seconds_bucket{way="buffered",le="10.0"}': "0+10x30",
        'spectral_delivery_seconds_bucket{way="buffered",le="+Inf"}': "0+10x30",
    },
    "SpectralRepairs": {"spectral_repairs_total": "0x20 1x10"},
    "SpectralFeedDegraded": {'spectral_feed{state="degraded"}': "1x30"},
    "SpectralQueueFull": {"spectral_commands_waiting": "6000x30", "spectral_commands_waiting_max": "10000x30"},
    "SpectralChangesTurnedAway": {"spectral_commands_turned_away_total": "0x26 5x4"},
    "SpectralOutcomeUnknown": {'spectral_groups_failed_total{why="unknown"}': "0x20 1x10"},
    "SpectralNoConnection": {"spectral_connections_failed_total": "0+1x30"},
    "SpectralTimersUnheld": {"spectral_timers_held": "0x30"},
    "SpectralTimersLate": {
        'spectral_timer_lag_seconds_bucket{le="5.0"}': "0x30",
        'spectral_timer_lag_seconds_bucket{le="10.0"}': "0+10x30",
        'spectral_timer_lag_seconds_bucket{le="+Inf"}': "0+10x30",
    },
    "SpectralLeasesRunOut": {
        'spectral_turns_total{what="lease_ran_out"}': "0+12x30",
        'spectral_claims_total{what="taken"}': "0+100x30",
    },
    "SpectralFileDescriptors": {"process_open_fds": "900x30", "process_max_fds": "1000x30"},
}


@needs_promtool
def test_each_alert_fires_for_what_it_is_for_and_for_nothing_else(tmp_path: Path) -> None:
    assert set(FIRING) == {rule["alert"] for rule in RULES}
    healthy = {
        "up": "1x30",
        "spectral_workers": "4x30",
        "spectral_workers_up": "4x30",
        "spectral_repairs_total": "7x30",
        "spectral_timers_held": "1x30",
        'spectral_timer_lag_seconds_bucket{le="5.0"}': "0+10x30",
        'spectral_timer_lag_seconds_bucket{le="+Inf"}': "0+10x30",
        # One in ten, and not more.
        'spectral_turns_total{what="lease_ran_out"}': "0+10x30",
        'spectral_claims_total{what="taken"}': "0+100x30",
    }
    tests = []
    for alert, series in [*FIRING.items(), (None, {})]:
        given = {"up": "1x30", **(series or healthy)}
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": _of_a_server(name), "values": values} for name, values in given.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "29m",
                        "exp_samples": [] if alert is None else [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
        )
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    ran = promtool("test", "rules", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _of_a_server(series: str) -> str:
    name, _, labels = series.partition("{")
    more = f",{labels}" if labels else "}"
    return f'{name}{{job="spectral-notify",instance="a",worker="0"{more}'
