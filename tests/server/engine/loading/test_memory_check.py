"""A model that does not fit is refused before it is read: by how much, and what would fit."""

import pytest
import torch

from server.engine.loading import memory_check
from server.engine.loading.load import CPU, load_model
from server.engine.loading.memory_check import free_memory
from server.engine.loading.memory_estimate import MemoryEstimateError
from telemetry import missing, present
from tests.support.gguf_tiny import write_gguf
from tests.support.tiny import save_tiny


@pytest.fixture(autouse=True)
def little(tmp_path, monkeypatch):
    """A machine with 300 MB free."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 3e8)


@pytest.mark.parametrize("quantised", [False, True])
def test_it_says_by_how_much_and_packs_nothing(tmp_path, quantised):
    source = (
        write_gguf(tmp_path / "tiny.gguf", types=lambda name: "Q8_0")
        if quantised
        else save_tiny(tmp_path / "tiny")
    )
    with pytest.raises(MemoryEstimateError, match=r"the model needs .* 0\.3 GB are free: 0\.2 GB"):
        load_model(source, "tiny")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_free_memory_counts_what_this_process_has_taken(monkeypatch):
    class Reader:
        def read(self):
            return {"memory_available_bytes": memory}

    monkeypatch.setattr(memory_check, "CapacityReader", Reader)
    memory = present(1e9, "test")
    assert 1e9 < free_memory(CPU) <= 1.45e9
    memory = missing("test", "it is a test")
    assert free_memory(CPU) == float("inf")


@pytest.mark.cuda
def test_free_memory_of_a_gpu():
    assert 0 < free_memory(torch.device("cuda")) < 1e12
