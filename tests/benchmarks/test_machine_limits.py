"""The measured limits of the machine are plausible, whatever the compiler."""

import shutil

import pytest

from benchmarks.support.machine_limits import measure_limits


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_limits_are_those_of_a_computer():
    limits = measure_limits(threads=1)
    assert 1e8 < limits.clock_hz < 1e10
    assert 1e7 < limits.read_bytes_per_second < 1e13
    assert set(limits.multiply_adds) <= {"int8", "fp32", "bf16"}
    assert all(0.1 < rate < 1e4 for rate in limits.multiply_adds.values())


def test_without_a_compiler_the_error_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        measure_limits(threads=1)
