"""Every metric that a panel or a rule asks for is one that the server has."""

import json
import re
from pathlib import Path

from telemetry import GpuReadings, MetricsRegistry, ServerMetrics, Snapshot, present
from telemetry.collector import TelemetryCollector

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))


def everything() -> str:
    """A scrape of a host on which every reading has a value."""
    registry = MetricsRegistry()
    ServerMetrics(registry)
    one = present(1.0, "test")
    gpu = GpuReadings("GPU-1", "H", **{n: one for n, _ in GpuReadings("", "").readings()})
    host = Snapshot(0.0, **{n: one for n, _ in Snapshot(0.0).readings()}, gpus=(gpu,))
    registry.register(TelemetryCollector(lambda: host))
    return registry.text().decode()


def offered() -> dict[str, str]:
    """Type by name, with the series that a histogram or counter is made of."""
    found: dict[str, str] = {}
    for line in everything().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            found[name] = kind
            if kind == "histogram":
                found |= {f"{name}_{part}": kind for part in ("bucket", "sum", "count")}
    return found


def test_panels_ask_for_what_there_is():
    known = offered()
    asked = 0
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                for name in re.findall(r"\btrimtab_\w+", target["expr"]):
                    asked += 1
                    assert name in known, f"{panel['title']}: no metric {name}"
                for name in re.findall(r"(trimtab_\w+)(?:{[^}]*})?\[", target["expr"]):
                    assert known[name] in ("counter", "histogram"), f"{name} is no counter"
    assert asked > 40


def test_what_the_server_counts_is_shown_somewhere():
    shown = "".join(path.read_text() for path in DASHBOARDS)
    registry = MetricsRegistry()
    ServerMetrics(registry)
    names = re.findall(r"^# TYPE (trimtab_\w+) ", registry.text().decode(), re.MULTILINE)
    quiet = {"trimtab_variant_info", "trimtab_policy_info", "trimtab_reader_info"}
    for name in names:
        if name not in quiet:
            assert name in shown, f"no panel shows {name}"
