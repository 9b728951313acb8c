"""The Grafana dashboard queries metrics that exist."""

from __future__ import annotations

import inspect
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
from ray.util.metrics import Counter

from lawdnet.training.gates import VALIDATION_METRICS
from pipelines.cluster.metrics import METRICS

DASHBOARD = json.loads((Path(__file__).parents[2] / "jobs/grafana/lawdnet.json").read_text(encoding="utf8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
OURS = re.compile(r"ray_(lawdnet_\w+)(?:\{(.*?)\})?")


def test_the_rows() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        "Build",
        "Training",
        "Rendering",
        "Cluster",
    ]


def test_it_can_be_imported_anywhere() -> None:
    assert {variable["type"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "query"}
    for panel in PANELS:
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert "id" not in DASHBOARD, "Grafana assigns it"


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    for first, second in combinations([panel["gridPos"] for panel in PANELS], 2):
        is_apart = any(
            one[at] + one[size] <= other[at]
            for one, other in ((first, second), (second, first))
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert is_apart, (first, second)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_all_our_metrics_are_shown_and_no_others() -> None:
    assert {name for query in QUERIES for name, _ in OURS.findall(query)} == METRICS.keys()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_fits_its_metrics(query: str) -> None:
    assert all(query.count(left) == query.count(right) for left, right in ("()", "{}", "[]"))
    for name, selector in OURS.findall(query):
        metric = METRICS[name]
        asked = set(re.findall(r"(\w+)[=!]", selector))
        grouped = re.search(r"by \((.*?)\)", query)
        asked |= set(grouped[1].split(", ")) - {"NodeAddress"} if grouped else set()  # added by Ray
        assert asked <= set(metric.labels), name
        is_rate = f"rate(ray_{name}" in query or f"max_over_time(ray_{name}" in query
        assert is_rate == (metric.kind is Counter), name
    for measures in re.findall(r'measure=~"(.*?)"', query):
        assert set(measures.split("|")) <= VALIDATION_METRICS.keys()


def test_rays_own_metrics_are_those_of_its_own_dashboard() -> None:
    known = inspect.getsource(default_dashboard_panels)
    rays = {name for query in QUERIES for name in re.findall(r"\b(?:ray|autoscaler)_\w+", query)}
    unknown = {name for name in rays if not name.startswith("ray_lawdnet") and not re.search(rf"\b{name}\b", known)}
    assert not unknown
