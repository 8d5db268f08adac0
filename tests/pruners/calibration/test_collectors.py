"""Test each collector against statistics of recorded activations."""

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.collectors import (
    HeadEntropy,
    OutputMoments,
    ResidualCosine,
    SecondMomentMatrix,
    down_projection,
    output_projection,
)
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.attention_entropy import eager_attention
from tests.support.models import FAMILIES, logits, random_rows, tiny_model

RAGGED = random_rows(5, (24, 3, 11, 40))


def recorded(model, names: tuple[str, ...], rows, output: bool = False):
    """Return the inputs (or outputs) `[tokens, features]` of modules, from unpadded rows."""
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, s=inputs[name]: s.append((out if output else args[0])[0])
        )
        for name in names
    ]
    with torch.no_grad():
        for row in rows:
            model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values).double() for name, values in inputs.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_second_moments_equal_brute_force_covariance(family: str):
    model = tiny_model(family)
    names = ("mlp.down_proj", "self_attn.o_proj")
    for index, (ffn, heads) in collect_by_layer(
        locate(model),
        RAGGED,
        lambda _: (
            SecondMomentMatrix(96, down_projection),
            SecondMomentMatrix(64, output_projection),
        ),
    ):
        inputs = recorded(model, tuple(f"model.layers.{index}.{n}" for n in names), RAGGED)
        for moments, values in zip((ffn, heads), inputs.values(), strict=True):
            assert moments.tokens == len(values) == sum(map(len, RAGGED))
            covariance = moments.matrix - torch.outer(moments.mean, moments.mean)
            expected = torch.cov(values.T, correction=0)
            torch.testing.assert_close(covariance, expected, rtol=1e-4, atol=1e-5)


def test_output_moments_read_the_queries():
    model = tiny_model()
    name = "model.layers.2.self_attn.q_proj"
    expected = recorded(model, (name,), RAGGED, output=True)[name]
    found = [
        moments
        for _, (moments,) in collect_by_layer(
            locate(model), RAGGED, lambda _: (OutputMoments(64, lambda layer: layer.attention.q),)
        )
    ][2]
    torch.testing.assert_close(found.mean, expected.mean(0).float(), rtol=1e-4, atol=1e-5)
    variance = expected.var(0, correction=0).float()
    torch.testing.assert_close(found.variance, variance, rtol=1e-4, atol=1e-5)


def test_cosines_of_layer_and_sub_blocks_equal_brute_force():
    model = tiny_model()
    found = [
        cosine
        for _, (cosine,) in collect_by_layer(locate(model), RAGGED, lambda _: (ResidualCosine(),))
    ]
    names = tuple(f"model.layers.{i}" for i in range(3))
    before = recorded(model, names, RAGGED)
    after = recorded(model, names, RAGGED, output=True)
    between = recorded(model, tuple(f"{n}.post_attention_layernorm" for n in names), RAGGED)
    for index, name in enumerate(names):
        middle = between[f"{name}.post_attention_layernorm"]
        for part, one, other in (
            ("layer", before[name], after[name]),
            ("attention", before[name], middle),
            ("mlp", middle, after[name]),
        ):
            expected = 1 - torch.cosine_similarity(one, other).mean().item()
            assert found[index].influence(part) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
def test_entropy_is_normalised_by_the_keys_of_each_query(family: str):
    model = tiny_model(family)
    located = locate(model)
    with eager_attention(located):
        found = [
            entropy.heads
            for _, (entropy,) in collect_by_layer(
                located, RAGGED, lambda _: (HeadEntropy(located.shape),)
            )
        ]
        for index, heads in enumerate(found):
            values = []
            for row in RAGGED:
                with torch.no_grad():
                    out = model(row[None], use_cache=False, output_attentions=True)
                weights = out.attentions[index][0].double()  # [heads, query, key]
                for query in range(1, len(row)):
                    p = weights[:, query]
                    keys = int((p[0] > 0).sum())
                    values.append(
                        -(p * p.clamp(min=1e-300).log()).sum(-1) / torch.tensor(keys).log()
                    )
            torch.testing.assert_close(
                heads, torch.stack(values).mean(0).float(), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("length", [5, 50])
def test_uniform_attention_has_entropy_one_at_any_length(length: int):
    located = locate(tiny_model())
    with torch.no_grad():
        located.layers[1].attention.q.weight.zero_()
    rows = random_rows(2, (length,))
    with eager_attention(located):
        found = [
            entropy.heads
            for _, (entropy,) in collect_by_layer(
                located, rows, lambda _: (HeadEntropy(located.shape),)
            )
        ]
    torch.testing.assert_close(found[1], torch.ones(4), rtol=0, atol=1e-5)
    assert (found[0] < 1).all()


def test_eager_attention_ends_with_its_context():
    model = tiny_model()
    before, kind = logits(model, random_rows(2, (9,))), model.config._attn_implementation
    with eager_attention(locate(model)):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == kind
    assert torch.equal(logits(model, random_rows(2, (9,))), before)


def test_pruned_upstream_includes_changes_to_earlier_layers():
    model = tiny_model()
    located = locate(model)
    means = []
    for index, (moments,) in collect_by_layer(
        located, RAGGED, lambda _: (SecondMomentMatrix(96, down_projection),), pruned_upstream=True
    ):
        means.append(moments.mean)
        with torch.no_grad():
            located.layers[index].mlp.down.weight[:, :48] = 0
    for index in range(3):  # layer l includes only the changes to the layers before it
        fresh = tiny_model()
        with torch.no_grad():
            for layer in range(index):
                fresh.model.layers[layer].mlp.down_proj.weight[:, :48] = 0
        name = f"model.layers.{index}.mlp.down_proj"
        expected = recorded(fresh, (name,), RAGGED)[name].mean(0)
        torch.testing.assert_close(means[index], expected, rtol=1e-4, atol=1e-5)
