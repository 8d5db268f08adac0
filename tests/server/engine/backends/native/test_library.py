"""Loading the native kernels: a library that does not fit is refused with one clear message."""

import ctypes
import importlib.util
import logging
from pathlib import Path

import pytest

from server.engine.backends.native import library
from server.engine.backends.native.library import LibraryMismatchError, is_available, open_library
from server.engine.backends.native.structures import STRUCTURES


@pytest.fixture
def built() -> Path:
    """Return the file of the kernels that were built, and forget that they were loaded."""
    loaded = library.load_library()
    if loaded is None:
        pytest.skip("the native kernels are not built")
    return Path(loaded._name)


@pytest.fixture
def unloaded():
    """Forget which library was loaded, before and after the test."""
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


class WiderStruct(ctypes.Structure):
    _fields_ = (*STRUCTURES[-1]._fields_, ("more", ctypes.c_int64))


@pytest.mark.parametrize(
    ("structures", "reason"),
    [
        ((*STRUCTURES[:-1], WiderStruct), r"WiderStruct has \d+ bytes in place of \d+"),
        (STRUCTURES[:-1], "11 structures in place of 10"),
        ((*STRUCTURES, WiderStruct), "11 structures in place of 12"),
    ],
)
def test_a_library_with_other_structures_is_refused(structures, reason, built, monkeypatch):
    open_library(built)
    monkeypatch.setattr(library, "STRUCTURES", structures)
    with pytest.raises(LibraryMismatchError, match=reason):
        open_library(built)


def test_a_library_that_does_not_fit_is_left_out_with_a_warning(monkeypatch, unloaded, caplog):
    other = importlib.util.find_spec("_ctypes")
    assert other is not None
    assert other.origin is not None
    monkeypatch.setenv("TRIMTAB_NATIVE", other.origin)
    with caplog.at_level(logging.WARNING):
        assert not is_available()
    (record,) = caplog.records
    assert "built from another version of the code" in record.message
    assert "install the package again" in record.message


def test_a_missing_library_is_left_out_silently(monkeypatch, unloaded, caplog, tmp_path):
    monkeypatch.setenv("TRIMTAB_NATIVE", str(tmp_path / "missing.so"))
    assert not is_available()
    assert caplog.records == []
