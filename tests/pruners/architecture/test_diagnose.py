import io

import pytest
import torch
from rich.console import Console

from pruners.architecture import UnsupportedModelError, locate
from pruners.architecture.diagnose import diagnose, render
from pruners.realization.slice import slice_model
from pruners.variant import VariantSpec
from tests.support.models import FAMILIES, PRUNED_FAMILIES, random_order, tiny_model


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_counts_every_parameter_once(family: str):
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


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_targets_hold_what_a_slice_loses(family: str):
    model = tiny_model(family)
    located = locate(model)
    targets = {target.name: target for target in diagnose(model).targets}
    full, ffn = located.shape.kv_groups, located.shape.ffn
    whole = ((full,) * 3, (ffn,) * 3)
    for name, kv_groups, neurons in (
        ("ffn_neuron", whole[0], (ffn, ffn - 1, ffn)),
        ("kv_group", (full, full - 1, full), whole[1]),
        ("attention_block", (full, 0, full), whole[1]),
        ("mlp_block", whole[0], (ffn, 0, ffn)),
        ("layer", (full, 0, full), (ffn, 0, ffn)),
    ):
        spec = VariantSpec(name, kv_groups, neurons)
        sliced = slice_model(located, spec, random_order(located.shape))
        lost = sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in sliced.parameters()
        )
        assert targets[name].parameters == lost, name


def test_needs_no_weights():
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
def test_renders(family: str, found: list[str]):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(diagnose(tiny_model(family))))
    text = " ".join(console.export_text().split())
    assert not [part for part in found if part not in text]


def test_names_the_modules_of_what_it_cannot_take_apart():
    with pytest.raises(UnsupportedModelError, match="found modules: embed_tokens, layers, norm"):
        diagnose(tiny_model().model)
    layer = torch.nn.ModuleDict({"mix": torch.nn.Linear(2, 2), "out": torch.nn.Linear(2, 2)})
    strange = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([layer])})
    with pytest.raises(UnsupportedModelError, match="'ModuleDict' is not supported") as no:
        diagnose(strange)
    assert str(no.value).endswith("found modules: blocks; 1 x blocks: mix, out")
