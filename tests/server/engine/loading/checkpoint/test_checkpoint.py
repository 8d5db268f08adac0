"""Parameters that are read one by one are those of the loaded model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruners.support.fingerprint import fingerprint
from server.engine.loading.checkpoint import ModelCheckpoint, open_checkpoint
from server.engine.loading.load import load_transformers
from tests.support.gguf_tiny import tensors_of, write_gguf
from tests.support.tiny import FAMILIES, save_tiny, tiny_model

GGUF = ("llama", "qwen2", "qwen3", "gemma3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def assert_holds(checkpoint: ModelCheckpoint, model: torch.nn.Module) -> None:
    wanted = model.state_dict()
    if checkpoint.config.tie_word_embeddings:
        assert torch.equal(wanted.pop("lm_head.weight"), wanted["model.embed_tokens.weight"])
    assert checkpoint.shapes == {name: tuple(one.shape) for name, one in wanted.items()}
    for name, values in wanted.items():
        assert torch.equal(checkpoint.read(name).to(values.dtype), values)
        checkpoint.release(name)
        for rows in (slice(3, 9), torch.tensor([5, 0, 7])):
            assert torch.equal(checkpoint.read(name, rows).to(values.dtype), values[rows])
    assert checkpoint.fingerprint() == fingerprint(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_what_transformers_reads(tmp_path: Path, family: str):
    folder = save_tiny(tmp_path / "tiny", family)
    assert_holds(open_checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder))


def test_shards_and_tied_heads_of_half_precision_too(tmp_path: Path):
    tiny_model(tie_word_embeddings=True).bfloat16().save_pretrained(
        tmp_path / "tiny", max_shard_size="100KB"
    )
    checkpoint = open_checkpoint(tmp_path / "tiny")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 1
    assert {checkpoint.stored_type(name) for name in checkpoint.shapes} == {"BF16"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    assert_holds(checkpoint, model)


@pytest.mark.parametrize("architecture", GGUF)
@pytest.mark.parametrize("head", [False, True])
def test_a_gguf_file_is_what_transformers_computes_with(
    tmp_path: Path, architecture: str, head: bool
):
    tensors = tensors_of(architecture)
    if head:
        tensors["output.weight"] = tensors_of(seed=3)["token_embd.weight"]
    types = {"attn_q": "Q4_0", "ffn_up": "Q6_K", "token_embd": "Q8_0"}
    path = write_gguf(
        tmp_path / "tiny.gguf",
        architecture,
        tensors=tensors,
        types=lambda name: next((kind for part, kind in types.items() if part in name), None),
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.stored_type("model.layers.1.self_attn.q_proj.weight") == "Q4_0"
    assert checkpoint.stored_type("model.layers.1.mlp.up_proj.weight") == "Q6_K"
    # That these values are llama.cpp's meaning of the file is tested by its formulae.
    assert_holds(checkpoint, load_transformers(path, torch.float32))
