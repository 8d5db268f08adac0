"""Tiny random models for serving and their tokenizers, so that tests need no downloads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.support.families import BASE_SIZES, served_families

VOCAB = 384
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SIZES = {
    **BASE_SIZES,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [4.0] * 4,
}
_FAMILIES = {
    **served_families(llama="llama", window=24),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _LLAMA3_ROPE}),
    "phi3-longrope": (
        Phi3ForCausalLM,
        Phi3Config,
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 320},
    ),
}
EVERY_FAMILY = list(_FAMILIES)
FAMILIES = [name for name in EVERY_FAMILY if name not in ("ministral", "phi3-longrope")]
"""Those whose layers differ; the others differ in their configurations only."""
BATCHED_FAMILIES = [name for name in FAMILIES if name not in ("granite", "phi3", "smollm3")]
"""Those for tests of batches, which know nothing of what is special in the others."""


def tiny_model(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """Return a random decoder whose logits differ clearly between tokens."""
    model_class, config_class, fields = _FAMILIES[family]
    torch.manual_seed(seed)
    model = (
        model_class(config_class(**{**_SIZES, **fields, **changes})).eval().requires_grad_(False)
    )
    for name, tensor in model.named_parameters():
        if tensor.dim() == 2:
            torch.nn.init.normal_(tensor, std=0.12)
        elif "norm" in name:
            tensor.add_(torch.randn_like(tensor) * 0.1)
        else:
            torch.nn.init.normal_(tensor, std=0.1)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<s>")
    fast.chat_template = CHAT
    return fast


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like those of Llama 2 and Mistral.

    Words begin with their space, and bytes without a token of their own are byte tokens.
    """
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [
        "\u2581",
        "\u2581is",
        "\u2581Paris",
        "\u2581the",
        "\u2581of",
        "\u2581capital",
        "\u2581France",
    ]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    scores = [*((word, -1.0) for word in words), *((letter, -4.0) for letter in letters)]
    vocabulary = [*((one, 0.0) for one in special), *((one, -9.0) for one in pieces), *scores]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT
    return fast


def save_tiny(folder: Path, family: str = "llama", **changes: object) -> Path:
    """Save a tiny model with its tokenizer as a Hugging Face folder; return the folder."""
    tiny_model(family, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
