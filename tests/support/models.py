"""Tiny random models of every family that can be pruned, and random rows for them."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from pruners.architecture import Shape
from pruners.realization.order import Order
from tests.support.families import BASE_SIZES, served_families

VOCAB = 97
SIZES = {
    **BASE_SIZES,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = served_families(llama="llama-gqa", window=8)
del FAMILIES["ministral"]  # a Llama with windows by layer, as Qwen has them
_HEADS_ARE_GROUPS = {"num_key_value_heads": None, "head_dim": None}

PRUNED_FAMILIES = {
    **FAMILIES,
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {**_HEADS_ARE_GROUPS, "intermediate_size": None, "n_inner": 96},
    ),
    "opt": (
        OPTForCausalLM,
        OPTConfig,
        {**_HEADS_ARE_GROUPS, "intermediate_size": None, "ffn_dim": 96},
    ),
    "opt-350m": (
        OPTForCausalLM,
        OPTConfig,
        {
            **_HEADS_ARE_GROUPS,
            "intermediate_size": None,
            "ffn_dim": 96,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 32,
        },
    ),
    "bert": (BertForMaskedLM, BertConfig, _HEADS_ARE_GROUPS),
}
"""The served families, and those that are only pruned and evaluated."""


def tiny_model(family: str = "llama-gqa", seed: int = 0, **overrides: object) -> nn.Module:
    """Return a random model without zero parameters, so that a misplaced bias or norm shows."""
    model_class, config_class, fields = PRUNED_FAMILIES[family]
    sizes = {
        name: size for name, size in {**SIZES, **fields, **overrides}.items() if size is not None
    }
    torch.manual_seed(seed)
    model = model_class(config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_rows(count: int, lengths: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Return rows of random tokens, int64; `lengths` are repeated in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, VOCAB, (lengths[i % len(lengths)],), generator=generator)
        for i in range(count)
    ]


def random_order(shape: Shape, seed: int = 0) -> Order:
    """Return an order of random neurons and reversed groups (two random ones might stay)."""
    generator = torch.Generator().manual_seed(seed)
    return Order(
        torch.stack([torch.randperm(shape.ffn, generator=generator) for _ in range(shape.layers)]),
        torch.arange(shape.kv_groups).flip(0).repeat(shape.layers, 1),
    )


@torch.no_grad()
def logits(model: nn.Module, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the logits of rows of equal length, `[rows, length, vocab]`."""
    return model(torch.stack(rows), use_cache=False).logits
