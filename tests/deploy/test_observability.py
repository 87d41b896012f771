"""Alerts, dashboards and docs/metrics.md against the metrics that a server and a sidecar really show."""

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hermosis_client import Client
from hermosis_client.local_server import LocalServer
from hermosis_server.engine.alerts import RULES

ROOT = Path(__file__).resolve().parents[2]
RULE_FILE = ROOT / "deploy" / "prometheus-rules.yml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
DOCUMENT = (ROOT / "docs" / "metrics.md").read_text()
OF_PROMETHEUS = {"up"}  # what it says of whom it reads


@dataclass(frozen=True)
class Family:
    """A metric with its labels; `shown_by` is server or sidecar."""

    name: str
    kind: str
    meaning: str
    labels: frozenset[str]
    shown_by: str


def page_of(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=20) as response:
        return str(response.read().decode())


def families(page: str, shown_by: str) -> Iterator[Family]:
    """What is ours on a page. A family without a sample now has no labels to be seen."""
    for family in text_string_to_metric_families(page):
        if family.name.startswith("hermosis_"):
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            suffix = "_total" if family.type == "counter" else ""
            yield Family(family.name + suffix, family.type, family.documentation, labels, shown_by)


@pytest.fixture(scope="module")
def shown() -> list[Family]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--metrics-port", str(port), "--durability", "journal"]
    with LocalServer(arguments=arguments) as server, Client(server.address) as client:
        session = client.create_session({"w": (2,)}, "hermosis", session_id="watched")
        session.initialise({"w": np.ones(2, np.float32)})
        session.exchange({"w": np.ones(2, np.float32)}, loss=1.0)
        command = [sys.executable, "-m", "hermosis_sidecar", "--port", "0", "--until-stdin-closes"]
        sidecar = subprocess.Popen(
            [*command, "--server", server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with sidecar:
            assert sidecar.stdout is not None
            assert sidecar.stdin is not None
            address = sidecar.stdout.readline().strip().removeprefix("HERMOSIS READY address=")
            urllib.request.urlopen(f"{address}/v1/sessions", timeout=20).close()  # it has read each session now
            found = [
                *families(page_of(f"http://127.0.0.1:{port}"), "server"),
                *families(page_of(address), "sidecar"),
            ]
            sidecar.stdin.close()
    return found


def series(shown: list[Family]) -> set[str]:
    """Names that may stand in an expression."""
    names = set()
    for family in shown:
        suffixes = ("_bucket", "_count", "_sum") if family.kind == "histogram" else ("",)
        names |= {family.name + suffix for suffix in suffixes}
    return names


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """What an expression reads. Raises where it is no PromQL."""
    found = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
            if isinstance(child := getattr(node, name, None), promql_parser.Expr):
                look(child)
        for child in getattr(node, "args", ()):
            look(child)

    look(promql_parser.parse(expression))
    assert found, f"{expression} reads nothing"
    return found


def check_expression(expression: str, shown: list[Family]) -> None:
    """Its metrics are there, with the labels that it chooses by."""
    labels = {name: family.labels for family in shown for name in series([family])}
    for selector in selectors(expression):
        assert selector.name in series(shown) | OF_PROMETHEUS, f"{expression}: nobody shows {selector.name}"
        chosen = {matcher.name for matcher in selector.matchers.matchers}
        assert chosen <= labels.get(selector.name, frozenset()) | {"instance", "job"}, f"{expression}: {chosen}"


RULE_LIST: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULE_FILE.read_text())["groups"] for rule in group["rules"]
]


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule["alert"])
def test_a_rule_reads_metrics_that_are_shown_and_says_what_to_do(rule: dict[str, Any], shown: list[Family]) -> None:
    check_expression(rule["expr"], shown)
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    assert set(rule["annotations"]) == {"summary", "action"}
    named = re.findall(r'rule="(\w+)"', rule["expr"])
    assert set(named) <= set(RULES)


def test_there_is_a_rule_for_everything_that_somebody_should_be_woken_for() -> None:
    names = {rule["alert"].removeprefix("Hermosis") for rule in RULE_LIST}
    assert len(names) == len(RULE_LIST)
    assert names >= {
        *("ServerAway", "StorageFailed", "SessionSetAside", "QueueGrowing"),
        *("StepSlow", "EnergyDefectGrowing", "GradientsStale", "DiskLow"),
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
@pytest.mark.parametrize("arguments", [["rules", str(RULE_FILE)]], ids=["rules"])
def test_promtool_has_no_objection(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", "check", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


VARIABLES = {"$__rate_interval": "1m", "$session_id": "a", "$instance": "a"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"hermosis-{path.stem}"
    assert board["title"]
    assert board["schemaVersion"] >= 39
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert board["templating"]["list"][0]["type"] == "datasource"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])}
        assert taken.isdisjoint(cells), f"{panel['title']} lies over another panel"
        taken |= cells
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] in {"timeseries", "stat", "table", "heatmap"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])))
        assert used <= variables | {"__rate_interval"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_reads_metrics_that_are_shown(path: Path, shown: list[Family]) -> None:
    board = json.loads(path.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    for variable in board["templating"]["list"][1:]:
        name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        expressions.append(f'{name}{{{label}="a"}}')
    for expression in expressions:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        check_expression(expression, shown)


@pytest.mark.parametrize(
    "expression",
    [
        "rate(hermosis_server_steps[1m])",
        'hermosis_server_steps_total{session_id="a"}',
        "hermosis_session_loss >",
        "1 + 1",
    ],
)
def test_an_expression_that_reads_nothing_would_be_seen(expression: str, shown: list[Family]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_expression(expression, shown)


def documented() -> dict[str, tuple[str, str, frozenset[str], str]]:
    """The rows of the tables of metrics: kind, unit, labels and meaning by name."""
    rows = re.findall(r"^\| `(hermosis_\w+)` \| (\w+) \| ([^|]+) \| ([^|]*) \| ([^|]+) \|$", DOCUMENT, re.MULTILINE)
    return {
        name: (kind, unit.strip(), frozenset(re.findall(r"`(\w+)`", labels)), meaning.strip())
        for name, kind, unit, labels, meaning in rows
    }


def test_every_metric_is_documented_as_it_is(shown: list[Family]) -> None:
    told = documented()
    assert set(told) == {family.name for family in shown}
    for family in shown:
        kind, unit, labels, meaning = told[family.name]
        assert kind == family.kind
        assert meaning == family.meaning
        assert not family.labels or labels == family.labels
        if family.name.removesuffix("_total").endswith("_bytes"):
            assert unit == "bytes"
        if family.name.endswith("_seconds"):
            assert unit == "seconds"


def test_nobody_shows_a_metric_of_another(shown: list[Family]) -> None:
    assert len({family.name for family in shown}) == len(shown)
    assert {family.shown_by for family in shown} == {"server", "sidecar"}


def test_every_rule_of_the_server_is_documented() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (critical|warning) \|", DOCUMENT, re.MULTILINE))
    assert rows == {rule: severity.name.lower() for rule, severity in RULES.items()}
