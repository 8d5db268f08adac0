"""Test that a slice with merged corrections computes what the corrected mask computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruners.architecture import locate
from pruners.correction import constant_correction
from pruners.realization.mask import apply_mask
from pruners.realization.merge_corrections import slice_with_corrections
from pruners.realization.order import identity_order
from pruners.realization.slice import SliceError
from pruners.realization.slice_folder import load_slice, save_slice
from pruners.variant import Block, VariantSpec
from tests.support.corrections import corrections_of
from tests.support.models import FAMILIES, logits, random_order, random_rows, tiny_model

ROWS = random_rows(2, (24,))
KINDS = ("rank", "trained", "norms", "materialised")
UNIFORM = VariantSpec("uniform", (2, 2, 2), (64, 64, 64))
DEPTH = VariantSpec("depth", (2, 0, 2), (96, 0, 96))
MIXED = VariantSpec("mixed", (1, 0, 2), (40, 96, 0))


def check_slice(folder: Path, located, spec, corrections, load=load_slice) -> None:
    order = random_order(located.shape)
    with apply_mask(located, spec, order, corrections):
        expected = logits(located.model, ROWS)
    save_slice(slice_with_corrections(located, spec, order, corrections), spec, folder)
    torch.testing.assert_close(logits(load(folder), ROWS), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_slice_answers_as_the_corrected_mask(tmp_path: Path, family: str, kind: str):
    located = locate(tiny_model(family).requires_grad_(False))
    spec = MIXED if located.shape.cuts_groups else replace(MIXED, kv_groups=(2, 0, 2))
    corrections = corrections_of(spec, located.shape, kind, 3)
    if family in ("gemma3", "olmo2"):  # norms follow blocks, so no bias can hold the constants
        corrections = {b: c for b, c in corrections.items() if spec.width(b)}
    check_slice(tmp_path / "slice", located, spec, corrections)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [UNIFORM, DEPTH], ids=lambda spec: spec.name)
@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_alone_reads_equal_widths_and_fewer_layers(tmp_path, kind: str, spec):
    located = locate(tiny_model().requires_grad_(False))
    corrections = corrections_of(spec, located.shape, kind, 4)
    load = AutoModelForCausalLM.from_pretrained
    check_slice(tmp_path / "slice", located, spec, corrections, load)


def test_a_constant_without_a_bias_before_it_is_refused():
    first = VariantSpec("first", (0, 2, 2), (0, 96, 96))
    located = locate(tiny_model())
    own = {Block(0, "mlp"): constant_correction(torch.ones(64))}
    with pytest.raises(SliceError, match=r"'first': no bias .* mlp block of layer 0"):
        slice_with_corrections(located, first, identity_order(located.shape), own)
    bert = locate(tiny_model("bert"))
    with pytest.raises(SliceError, match="family 'bert'"):
        slice_with_corrections(
            bert, VariantSpec("v", (4, 4, 4), (96, 96, 64)), identity_order(bert.shape), own
        )
