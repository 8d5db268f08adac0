"""Test the report of a model's parts and of what can be pruned."""

import io

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, GraniteMoeConfig, MixtralConfig, Qwen3MoeConfig

from pruners.architecture import UnsupportedModelError, locate
from pruners.architecture.diagnose import diagnose, render
from pruners.realization.slice import slice_model
from pruners.variant import VariantSpec
from tests.support.models import FAMILIES, PRUNED_FAMILIES, random_order, tiny_model

ALL = 1000  # more units than a tiny layer has


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_every_parameter_is_counted_once(family: str):
    model = tiny_model(family)
    report = diagnose(model)
    assert report.total == sum(p.numel() for p in model.parameters())
    assert sum(map(report.share, report.parameters)) == pytest.approx(1)
    assert report.served == (family in FAMILIES)
    assert report.parameters["ffn"] == sum(
        p.numel()
        for name, p in model.named_parameters()
        if any(part in name for part in ("mlp.", "fc1", "fc2", "intermediate", ".output.dense"))
        and "attention.output" not in name
    )


@pytest.mark.parametrize(
    ("name", "fewer_groups", "fewer_neurons"),
    [
        ("ffn_neuron", 0, 1),
        ("kv_group", 1, 0),
        ("attention_block", ALL, 0),
        ("mlp_block", 0, ALL),
        ("layer", ALL, ALL),
    ],
)
@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_a_target_has_the_parameters_that_a_slice_without_it_lacks(
    family: str, name: str, fewer_groups: int, fewer_neurons: int
):
    model = tiny_model(family)
    located = locate(model)
    groups, ffn = located.shape.kv_groups, located.shape.ffn
    if name == "kv_group" and not located.shape.cuts_groups:
        return
    spec = VariantSpec(
        name,
        (groups, max(0, groups - fewer_groups), groups),
        (ffn, max(0, ffn - fewer_neurons), ffn),
    )
    sliced = slice_model(located, spec, random_order(located.shape))
    removed = diagnose(model).total - sum(p.numel() for p in sliced.parameters())
    targets = {target.name: target for target in diagnose(model).targets}
    assert targets[name].parameters == removed


def test_groups_that_a_norm_joins_are_no_target():
    report = diagnose(tiny_model("olmo2"))
    assert "kv_group" not in {target.name for target in report.targets}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(report))
    assert "a norm joins them, so they are cut together" in console.export_text()
    shape = report.shape
    spec = VariantSpec("some", (1, 2, 2), (shape.ffn,) * 3)
    with pytest.raises(ValueError, match=r"'some' keeps some .* keeps all of them or none"):
        spec.check(shape)
    VariantSpec("skip", (0, 2, 2), (shape.ffn,) * 3).check(shape)


@pytest.mark.parametrize("config", [MixtralConfig, Qwen3MoeConfig, GraniteMoeConfig])
def test_a_mixture_of_experts_is_refused_by_its_name(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=64)
        )
    refusal = f"^mixture-of-experts is not supported: {config.model_type};"
    with pytest.raises(UnsupportedModelError, match=refusal):
        locate(model)


def test_a_model_on_the_meta_device_gives_the_same_report():
    model = tiny_model("gpt2").to("meta")
    model.tie_weights()
    assert diagnose(model) == diagnose(tiny_model("gpt2"))


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("llama-gqa", ["4 heads of 16 in 2 KV groups of 2", "96 neurons, gated", "served │ yes"]),
        ("bert", ["each with its own keys", "not gated", "both ways", "evaluation only", "tied"]),
    ],
)
def test_the_report_names_sizes_and_limits(family: str, found: list[str]):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(diagnose(tiny_model(family))))
    text = " ".join(console.export_text().split())
    assert not [part for part in found if part not in text]


def test_an_unknown_model_is_refused_with_the_names_of_its_modules():
    with pytest.raises(UnsupportedModelError, match="found modules: embed_tokens, layers, norm"):
        diagnose(tiny_model().model)
    layer = torch.nn.ModuleDict({"mix": torch.nn.Linear(2, 2), "out": torch.nn.Linear(2, 2)})
    strange = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([layer])})
    with pytest.raises(UnsupportedModelError, match="'ModuleDict' is not supported") as no:
        diagnose(strange)
    assert str(no.value).endswith("found modules: blocks; 1 x blocks: mix, out")
