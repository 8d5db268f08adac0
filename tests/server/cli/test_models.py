"""`trimtab pull` with a fake hub and a made-up store, and a server on what it brought."""

from pathlib import Path

import httpx
import pytest

from server.testing import ServerProcess
from tests.support.commands import one_line, trimtab
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.gguf_tiny import write_gguf
from tests.support.ollama_store import add_ollama


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_gguf(tmp_path / "tiny.gguf", types=lambda name: "Q8_0").read_bytes()
    add_ollama(tmp_path / "ollama", "registry.ollama.ai/library/mine/1b", model=file)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "trimtab"))
    with fake_hub({"me/gguf": {"tiny-Q8_0.gguf": file, "tiny-Q4_0.gguf": b"GGUF"}}) as running:
        running.use(monkeypatch, tmp_path / "hub")
        yield running


def test_pull_prints_where_the_model_is(hub: FakeHub):
    done = trimtab("pull", "me/gguf:Q8_0")
    path = Path(done.stdout.strip())
    assert (done.returncode, path.name) == (0, "tiny-Q8_0.gguf")
    assert path.read_bytes() == hub.files["me/gguf"]["tiny-Q8_0.gguf"]
    ollama = trimtab("pull", "ollama:mine:1b")
    assert Path(ollama.stdout.strip()).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("me/nothing", "has no model me/nothing"),
        ("me/gguf:Q5_0", "has no Q5_0; there are: Q4_0, Q8_0"),
        ("ollama:other", "get it with `ollama pull other`"),
        ("nothing", "no such model: nothing"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(hub: FakeHub, model, says):
    one_line(trimtab("pull", model), says)


@pytest.mark.slow
def test_a_server_pulls_what_it_lacks_and_has_the_models_name(hub: FakeHub, tmp_path):
    log = tmp_path / "server.log"
    name = "me/gguf:Q8_0"
    server = ServerProcess("--model", f"hf:{name}", log=log, TRIMTAB_THREADS="1").wait()
    try:
        listed = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert name in [one["id"] for one in listed]
        body = {"model": name, "prompt": "the quick", "max_tokens": 3}
        answer = httpx.post(f"{server.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0
    finally:
        server.stop()
