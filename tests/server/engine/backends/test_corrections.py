"""Corrections in a step: what `transformers` computes under hooks, and nobody else's rows."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.mask import mask
from pruners.realization.order import Order
from pruners.recovery import Entry, LowRank, Materialised, constant
from pruners.variant import Block, VariantSpec, base_spec
from server.engine.backends.pytorch.corrections import own_parts
from server.engine.segment import Segment
from tests.support.driving import random_order, run, runner_of, submit, weights_of
from tests.support.tiny import tiny_model

SEED = 7
PROMPT = list(range(30, 70))


def specs_of(shape) -> dict[str, VariantSpec]:
    full = shape.kv_groups
    found = [
        base_spec(shape),
        VariantSpec("narrow", (1, full, 1), (32, 64, 96)),
        VariantSpec("narrower", (1, 1, 0), (32, 32, 64)),
        VariantSpec("plain", (full, full, full), (64, 64, 64)),
        VariantSpec("own", (full, 1, full), (64, 96, 0)),
        VariantSpec("trained", (1, full, 1), (96, 40, 64)),
        VariantSpec("norms", (full, 0, 1), (0, 96, 80)),
    ]
    return {spec.name: spec for spec in found}


def corrections_of(spec: VariantSpec, shape, kind: str, seed: int):
    """Random ones for every block, skipped ones too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return 0.1 * torch.randn(size, generator=generator)

    found = {}
    for layer in range(shape.layers):
        queries = spec.kv_groups[layer] * shape.queries_per_group * shape.head_dim
        for block, width in (
            (Block(layer, "attention"), queries),
            (Block(layer, "mlp"), spec.ffn[layer]),
        ):
            if width == 0:
                found[block] = constant(draw(shape.hidden))
            elif kind == "materialised":
                found[block] = Materialised(draw(shape.hidden), draw(shape.hidden, width))
            else:
                rank = {"rank": 4, "bias": 0, "trained": 5, "norms": 0}[kind]
                up, down = draw(shape.hidden, rank), draw(rank, width)
                entry = None
                if kind in ("trained", "norms"):
                    per_group = (shape.queries_per_group + 2) * shape.head_dim
                    features = (
                        spec.kv_groups[layer] * per_group
                        if block.part == "attention"
                        else 2 * width
                    )
                    inner = draw(features, rank), draw(rank, shape.hidden)
                    entry = Entry(1 + draw(shape.hidden), *inner)
                found[block] = LowRank(draw(shape.hidden), up, down, entry)
    return found


def setting(family: str):
    model = tiny_model(family)
    weights = weights_of(tiny_model(family), seed=SEED)
    shape = weights.shape
    order = Order(
        random_order(shape.layers, shape.ffn, SEED),
        random_order(shape.layers, shape.kv_groups, SEED),
    )
    specs = specs_of(shape)
    corrections = {
        "narrow": corrections_of(specs["narrow"], shape, "rank", 1),
        "narrower": corrections_of(specs["narrower"], shape, "bias", 2),
        "own": corrections_of(specs["own"], shape, "materialised", 3),
        "trained": corrections_of(specs["trained"], shape, "trained", 4),
        "norms": corrections_of(specs["norms"], shape, "norms", 5),
    }
    runner = runner_of(weights, own=own_parts(weights, corrections))
    return locate(model), order, specs, corrections, runner


def logits_of(runner, spec):
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(PROMPT))
    found = runner.decoder.logits(runner.decoder.forward([Segment(PROMPT, cache, spec)]))
    cache.close()
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3", "gemma3"])
def test_a_corrected_variant_equals_the_corrected_mask(family: str):
    decoder, order, specs, corrections, runner = setting(family)
    for name, spec in specs.items():
        with mask(decoder, spec, order, corrections.get(name)):
            expected = decoder.model(torch.tensor([PROMPT]), use_cache=False).logits[0]
        torch.testing.assert_close(logits_of(runner, spec), expected, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("family", ["llama-bias", "gemma3"])
def test_rows_of_all_variants_in_one_step_write_what_they_write_alone(family: str):
    *_, specs, _, runner = setting(family)
    names = [*specs, *reversed(specs)]

    def tokens(name: str, index: int) -> list[int]:
        _, recorder = submit(runner, PROMPT[index : index + 9], specs[name], 12)
        run(runner)
        return recorder.tokens

    alone = [tokens(name, index) for index, name in enumerate(names)]
    recorders = [
        submit(runner, PROMPT[index : index + 9], specs[name], 12)[1]
        for index, name in enumerate(names)
    ]
    run(runner)
    assert [recorder.tokens for recorder in recorders] == alone


def test_the_base_is_bit_identical_with_corrections_loaded():
    *_, specs, _, runner = setting("llama")
    bare = runner_of(weights_of(tiny_model("llama"), seed=SEED))
    for name in specs:
        submit(runner, PROMPT, specs[name], 3)
    run(runner)
    assert torch.equal(logits_of(runner, specs["base"]), logits_of(bare, specs["base"]))
