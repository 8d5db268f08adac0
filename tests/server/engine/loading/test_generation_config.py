"""Which ids end an answer, and ids and parameters of a folder that its model cannot have."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from pruners.architecture import UnsupportedModelError
from server.engine.loading.checkpoint import description_folder
from server.engine.loading.generation_config import check_tokens, end_token_ids, sampling_defaults
from server.engine.loading.load import load_model, load_tokenizer, load_transformers, open_decoder
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from tests.support.driving import run, submit
from tests.support.gguf_tiny import write_gguf
from tests.support.tiny import VOCAB, save_tiny, tiny_model, tiny_tokenizer

ABSENT = object()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def say(folder: Path, file: str, **values: object) -> None:
    """Sets fields of a JSON file, which is made if need be, or takes them out."""
    path = folder / file
    said = json.loads(path.read_text()) if path.exists() else {}
    said.update(values)
    path.write_text(json.dumps({k: v for k, v in said.items() if v is not ABSENT}))


def ends(folder: Path) -> frozenset[int]:
    return end_token_ids(folder, AutoConfig.from_pretrained(folder), load_tokenizer(folder))


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        (0, 0, None, {0}),
        (0, ABSENT, None, {0}),
        ([0, 7], [9, 0], "<|end|>", {0, 1, 7, 9}),
        (None, None, "<|end|>", {1}),
        (7, [8, 9], "<|end|>", {1, 7, 8, 9}),
        (ABSENT, ABSENT, "<|end|>", {1}),  # not 2, the default of Llama's class
        (ABSENT, ABSENT, None, {2}),
        (ABSENT, 5, None, {5}),
    ],
)
def test_all_ends_are_united(folder: Path, config, generation, tokenizer, expected):
    say(folder, "config.json", eos_token_id=config)
    say(folder, "generation_config.json", eos_token_id=generation)
    say(folder, "tokenizer_config.json", eos_token=tokenizer)
    assert ends(folder) == expected


def test_ends_behind_the_vocabulary_are_dropped_with_a_warning(folder: Path, caplog):
    say(folder, "config.json", eos_token_id=VOCAB)
    say(folder, "generation_config.json", eos_token_id=[1, 4, -1, VOCAB + 7])
    with caplog.at_level(logging.WARNING):
        assert ends(folder) == {1, 4}
    lines = [r.getMessage() for r in caplog.records if "EOS" in r.getMessage()]
    assert [line.split(":")[0] for line in lines] == [
        "config.json",
        *["generation_config.json"] * 2,
    ]
    assert str(VOCAB + 7) in lines[2]


@pytest.mark.parametrize("wrong", ["</s>", 1.5, True, [1, "2"], {"id": 1}])
def test_an_end_that_is_no_id_is_refused(folder: Path, wrong):
    say(folder, "generation_config.json", eos_token_id=wrong)
    with pytest.raises(UnsupportedModelError, match=r"eos_token_id .* is no id"):
        ends(folder)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_damaged_generation_config_is_refused(folder: Path, text: str):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match="generation_config"):
        ends(folder)


def test_an_answer_ends_at_token_0(folder: Path):
    model = tiny_model()
    for layer in model.model.layers:  # nothing is added: the embedding alone decides
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.lm_head.weight[0] = model.get_input_embeddings().weight[9] * 100
    model.save_pretrained(folder)
    say(folder, "config.json", eos_token_id=0)
    say(folder, "generation_config.json", eos_token_id=0)
    say(folder, "tokenizer_config.json", eos_token=None)
    loaded = load_model(folder, "tiny", "fp32")
    decoder = open_decoder(loaded, 256)
    runner = Runner(decoder, Scheduler(decoder.cache, SchedulerLimits(4, 64)))
    recorder = submit(runner, [9], loaded.variants["base"], 8, eos_token_ids=loaded.eos_token_ids)[
        1
    ]
    run(runner)
    assert recorder.last.finish_reason == "stop"
    assert recorder.text == ""


def test_a_tokenizer_that_knows_more_than_its_model_warns_once(caplog):
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<c>"]})
    for size, behind in ((known + 3, None), (known + 1, 2), (known - 10, 13)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="server"):
            check_tokens(size, tokenizer)
        lines = [r.getMessage() for r in caplog.records]
        assert len(lines) == (behind is not None)
        if behind is not None:
            assert f"{behind} tokens behind the model's {size}" in lines[0]


def test_a_tokenizer_that_starts_every_prompt_with_an_unknown_token_is_refused(folder: Path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    start = tokenizer.convert_tokens_to_ids("<start>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", start)]
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert start < config["vocab_size"]
    load_model(folder, "tiny", "fp32")
    small = tiny_model(vocab_size=start)
    small.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=f"adds token {start} .'<start>'."):
        load_model(folder, "tiny", "fp32")


def test_a_text_with_a_token_that_the_model_does_not_know_is_one_clear_line(folder: Path):
    model = load_transformers(folder, torch.float32)
    model(torch.tensor([[0, VOCAB - 1]]))
    with pytest.raises(UnsupportedModelError, match=f"token {VOCAB} .* knows {VOCAB} tokens"):
        model(torch.tensor([[0, VOCAB]]))


@pytest.mark.parametrize("token", [VOCAB, -VOCAB - 1])
def test_a_padding_id_behind_the_vocabulary_is_refused(folder: Path, token: int):
    say(folder, "config.json", pad_token_id=token)
    with pytest.raises(UnsupportedModelError, match=f"config.json: pad_token_id {token}"):
        load_model(folder, "tiny")


def test_what_is_not_served_is_not_measured_either(tmp_path: Path):
    folder = save_tiny(tmp_path / "tiny", "gemma3", use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match=r"config.json: use_bidirectional_attention"):
        load_transformers(folder, torch.float32)


def test_quantised_weights_of_transformers_are_refused(folder: Path):
    say(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        load_model(folder, "tiny")


def test_sampling_defaults_count_where_sampling_is_asked_for():
    said = {"temperature": 0.0, "top_k": 0, "top_p": 0.5}
    assert sampling_defaults(None) == {}
    assert sampling_defaults(GenerationConfig(**said)) == {}
    assert sampling_defaults(GenerationConfig(do_sample=True, **said)) == said
    assert sampling_defaults(GenerationConfig(do_sample=True, top_k=-1)) == {"top_k": 0}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("temperature", -1.0), ("temperature", "hot"), ("top_p", 1.5), ("repetition_penalty", 0.0)],
)
def test_a_sampling_default_that_no_request_could_have_is_refused(name: str, wrong: object):
    generation = GenerationConfig(do_sample=True)
    setattr(generation, name, wrong)
    with pytest.raises(UnsupportedModelError, match=f"generation_config.json: {name}"):
        sampling_defaults(generation)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {1}),
        ({"eos": 0}, {0, 1}),  # `<|end|>` by its name
        ({"eos": 0, "eot": 2, "eom": 4}, {0, 1, 2, 4}),
        ({"eos": None, "eot": 3}, {1, 3}),
    ],
)
def test_all_ends_of_a_gguf_file_are_united(
    tmp_path: Path, monkeypatch, keys: dict, expected: set[int]
):
    general = {f"tokenizer.ggml.{key}_token_id": token for key, token in keys.items()}
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    folder = description_folder(write_gguf(tmp_path / "tiny.gguf", **general))
    assert ends(folder) == expected
    # And `transformers` adds no token of its own.
    assert load_tokenizer(folder).get_vocab() == tiny_tokenizer().get_vocab()
