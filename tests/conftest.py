"""Fixtures that many tests share: the default model, and servers that run for a whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.testing import ServerProcess

SLOW_FIXTURES = {
    "browser",
    "clients_server",
    "default_model",
    "documented_server",
    "evaluated",
    "reading_server",
    "tiny_server",
    "varied_server",
}
"""Whatever uses these is marked `slow`: they load the default model or start a process."""


OTHER_FAMILIES = {
    *("bert", "gemma3", "gpt2", "granite", "llama-bias", "llama-mha", "llama3-rope", "ministral"),
    *("mistral", "olmo2", "opt", "opt-350m", "phi3", "phi3-longrope", "qwen2", "qwen3", "smollm3"),
}
"""A test of many model families is `slow` for these; `llama` and `llama-gqa` are typical."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures and the model families that they use."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        families = {value for value in parameters if isinstance(value, str)} & OTHER_FAMILIES
        if names & SLOW_FIXTURES or families:
            item.add_marker(pytest.mark.slow)
        if "browser" in names:
            item.add_marker(pytest.mark.browser)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Restore the number of PyTorch's threads after a test that changed it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Return the default model's folder, fetched once into the cache."""
    return resolve_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random Llama with a tokenizer."""
    from tests.support.tiny import save_tiny  # it imports transformers, which takes seconds

    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_server(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Run a server on the tiny model for the whole session."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = ServerProcess("--model", str(tiny_folder), log=log, TRIMTAB_THREADS="1")
    yield server.wait()
    assert server.stop() == 0
