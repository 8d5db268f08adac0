"""Tiny random models and a tokenizer to go with them, for breadth without downloads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 384
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 24}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
FAMILIES = list(_FAMILIES)


def tiny_model(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random decoder, spread widely enough that its logits differ clearly between tokens."""
    cls, config, extra = _FAMILIES[family]
    torch.manual_seed(seed)
    model = cls(config(**{**_SIZES, **extra, **changes})).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        if tensor.dim() == 2:
            torch.nn.init.normal_(tensor, std=0.12)
        elif "norm" in name:
            tensor.add_(torch.randn_like(tensor) * 0.1)
        else:
            torch.nn.init.normal_(tensor, std=0.1)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template."""
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
    """As Llama 2 and Mistral have them: words begin with their space, other bytes are tokens."""
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
    """A tiny model with its tokenizer as a Hugging Face folder."""
    tiny_model(family, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
