"""`benchmarks.gpu_check` on the CPU with a tiny model: every part runs, and time is kept."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.measure import measure
from benchmarks.gpu_check.report import table_rows
from benchmarks.gpu_check.shapes import sizes_of
from benchmarks.support.peers import interleaved

CPU = torch.device("cpu")


def run_here(tests: str):
    """Stands for `subprocess.run`: pytest's last line, and measurements in this process."""

    def run(command, timeout, **rest):
        assert timeout > 0
        if "pytest" in command:
            return subprocess.CompletedProcess(command, 0, tests)
        out, device, seconds, size = command[-4:]
        measure(Path(out), torch.device(device), float(seconds), sizes_of(size == "quick"))
        raise subprocess.TimeoutExpired(command, timeout)  # what it had written counts

    return run


def check(monkeypatch, path, run) -> tuple[int, dict]:
    """The exit code and the result of a quick check."""
    options = ["--device", "cpu", "--quick", "--seconds", "300", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *options])
    stand_in = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu_check, "subprocess", stand_in)
    try:
        main()
    except SystemExit as ended:
        return ended.code, json.loads(path.read_text())
    return 0, json.loads(path.read_text())


@pytest.mark.slow
def test_every_part_runs_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    run = run_here("sss..\n2 passed, 3 skipped in 1s")
    code, result = check(monkeypatch, tmp_path / "found.json", run)
    assert code == 0
    counts = ("passed", "failed", "skipped", "errors")
    assert [result["tests"][name] for name in counts] == [2, 0, 3, 0]
    found = result["shapes"]["tiny"]
    assert found.keys() == {"model", "decode", "prefill", "graphs", "variants", "readers"}
    assert found["decode"].keys() == {"1", "2"}
    assert found["readers"].keys() == {"full", "read-60", "read-30"}
    assert found["variants"].keys() == {"base", "ffn-50", "depth-3"}
    assert found["variants"]["base"]["efficiency_2"] == 1
    assert result["training"]["tokens_per_second"] > 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| cpu, tiny |"))
    assert row.count("|") == 9
    assert "| - |" not in row
    assert "measurements ended: their time was over" in printed


def test_a_failed_test_and_measurements_without_a_result_fail_the_check(tmp_path, monkeypatch):
    def run(command, timeout, **rest):
        if "pytest" in command:
            raise subprocess.TimeoutExpired(command, timeout, b"1 failed, 1 error")
        return subprocess.CompletedProcess(command, 1)

    code, result = check(monkeypatch, tmp_path / "found.json", run)
    assert (code, result["tests"]["failed"], result["tests"]["errors"]) == (1, 1, 1)
    assert result["tests"]["ended"] == "after their time was over"
    assert "shapes" not in result


@pytest.mark.slow
def test_without_time_there_is_a_result_all_the_same(tmp_path):
    measure(tmp_path / "found.json", CPU, 0.0, sizes_of(quick=True))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["shapes"]["tiny"].keys() == {"model"}
    tests = dict.fromkeys(("passed", "failed"), 0)
    rows = table_rows({"machine": {}, "device": "cpu", "tests": tests, **found})
    assert "| cpu, tiny | - | - | - | - | - | - | - |" in rows


def test_a_shape_that_does_not_fit_is_left_out_by_name(tmp_path):
    rows = table_rows(
        {
            "machine": {"gpu": "Small"},
            "tests": {"passed": 1, "failed": 0},
            "device": "cuda",
            "shapes": {"8B": {"left_out": "it needs 33 GiB of the GPU's memory"}},
        }
    )
    assert "| Small, 8B | it needs 33 GiB of the GPU's memory | - |" in rows
    assert 24e9 < sizes_of(quick=False)["8B"].bytes < 26e9  # 16 of weights, 9 of cache


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with pytest.raises(SystemExit, match="PyTorch sees no GPU here"):
        main()


def test_turns_end_before_their_time_does():
    def job() -> float:
        time.sleep(0.02)
        return 1.0

    jobs = {("a", "1"): job, ("b", "1"): job}
    started = time.monotonic()
    found = interleaved(jobs, 100, started + 0.15)
    assert time.monotonic() - started < 0.2
    assert 1 <= len(found["a", "1"]) <= 4
    assert interleaved(jobs, 3, started) == {}
    assert {len(v) for v in interleaved(jobs, 2, math.inf).values()} == {2}
