"""Model folders that do not hold what their configuration says are refused by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruners.architecture import UnsupportedModelError
from server.engine.loading.load import load_outline, load_tokenizer, load_transformers
from tests.support.tiny import save_tiny, tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"
EXTRA = "model.layers.9.mlp.up_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        load_transformers(folder, torch.float32)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "changes", "named"),
    [
        (lambda held: held.pop(DOWN), {}, f"missing: {DOWN}"),
        (lambda held: held.pop("lm_head.weight"), {}, "missing: lm_head.weight"),
        (lambda held: held.update({BIAS: torch.ones(64)}), {}, f"'llama': {BIAS}"),
        (lambda held: held.update({EXTRA: torch.ones(96, 64)}), {}, f"'llama': {EXTRA}"),
        (lambda held: held.update({UP: torch.ones(80, 64)}), {}, f"{UP} is (80, 64)"),
        (lambda held: held.update({UP: torch.ones(96, 64).char()}), {}, f"{UP} is I8"),
        (
            lambda held: held.update({"lm_head.weight": torch.ones(384, 64)}),
            {"tie_word_embeddings": True},
            "lm_head.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable, changes: dict, named: str
):
    folder = save_tiny(tmp_path / "tiny", **changes)
    rewrite(folder / "model.safetensors", change)
    assert named in refused(folder)


def test_what_is_known_to_be_harmless_is_read(tmp_path: Path):
    folder = save_tiny(tmp_path / "tiny", tie_word_embeddings=True)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    rewrite(folder / "model.safetensors", lambda held: held.update(old))
    wanted = tiny_model(tie_word_embeddings=True).state_dict()
    found = load_transformers(folder, torch.float32).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def sharded(folder: Path) -> tuple[Path, dict[str, str]]:
    """A model in three files, and where its index says that tensors are."""
    tiny_model().save_pretrained(folder, max_shard_size="200KB")
    return folder, json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_shards_are_read_whole(tmp_path: Path):
    folder, listed = sharded(tmp_path / "tiny")
    assert len(set(listed.values())) > 1
    found, wanted = load_transformers(folder, torch.float32).state_dict(), tiny_model().state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_index_that_is_wrong_is_refused(tmp_path: Path):
    folder, listed = sharded(tmp_path / "tiny")
    index = folder / "model.safetensors.index.json"
    for name, file in ((DOWN, None), ("model.other", "model-00001-of-00003.safetensors")):
        changed = {key: value for key, value in {**listed, name: file}.items() if value}
        index.write_text(json.dumps({"weight_map": changed}))
        assert f"is wrong about {name}" in refused(folder)
    index.write_text("{}")
    assert "is damaged" in refused(folder)


def test_a_shard_that_is_missing_is_named(tmp_path: Path):
    folder, listed = sharded(tmp_path / "tiny")
    (folder / listed[DOWN]).unlink()
    assert f"names {listed[DOWN]}, which is not there" in refused(folder)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path):
    folder, listed = sharded(tmp_path / "tiny")
    other = next(file for file in listed.values() if file != listed[DOWN])
    copy = load_file(folder / listed[DOWN])[DOWN]
    rewrite(folder / other, lambda held: held.update({DOWN: copy + 1}))
    assert f"{DOWN} is there twice" in refused(folder)


@pytest.mark.parametrize("left", [0, 4, 200, 5000, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, left: int):
    weights = save_tiny(tmp_path / "tiny") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    assert "model.safetensors is damaged" in refused(weights.parent)


def test_pickles_are_not_read(tmp_path: Path):
    folder = save_tiny(tmp_path / "tiny")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin is a pickle" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_not_run_nor_asked_about(tmp_path: Path, file: str):
    folder = save_tiny(tmp_path / "tiny")
    (folder / "mine.py").write_text("open('ran', 'w')\n")
    config = json.loads((folder / file).read_text())
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / file).write_text(json.dumps(config))
    for load in (load_tokenizer, load_outline, lambda f: load_transformers(f, torch.float32)):
        with pytest.raises(UnsupportedModelError, match=f"auto_map in {file}"):
            load(folder)


@pytest.mark.slow
def test_the_command_asks_nothing(tmp_path: Path):
    folder = save_tiny(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--model", str(folder)],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "auto_map" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
