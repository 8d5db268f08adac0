"""Tiny random models of every family."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pruners.architecture import Shape
from pruners.realization.order import Order

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES = {
    "llama-gqa": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

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
"""Those that are served, and those that are pruned and evaluated only."""


def tiny_model(family: str = "llama-gqa", seed: int = 0, **overrides: object) -> nn.Module:
    """A random model, every parameter nonzero, so that a misplaced bias or norm shows."""
    model_class, config_class, own = PRUNED_FAMILIES[family]
    sizes = {name: size for name, size in {**SIZES, **own, **overrides}.items() if size is not None}
    torch.manual_seed(seed)
    model = model_class(config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_rows(count: int, lengths: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Rows of random tokens; lengths repeat in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, VOCAB, (lengths[i % len(lengths)],), generator=generator)
        for i in range(count)
    ]


def random_order(shape: Shape, seed: int = 0) -> Order:
    """Random neurons; groups in reverse, since two at random may well stay."""
    generator = torch.Generator().manual_seed(seed)
    return Order(
        torch.stack([torch.randperm(shape.ffn, generator=generator) for _ in range(shape.layers)]),
        torch.arange(shape.kv_groups).flip(0).repeat(shape.layers, 1),
    )


@torch.no_grad()
def logits(model: nn.Module, rows: list[torch.Tensor]) -> torch.Tensor:
    """Logits of rows of equal length, `[rows, length, vocab]`."""
    return model(torch.stack(rows), use_cache=False).logits
