"""The sizes of a random Llama, as options of a benchmark."""

import argparse

_OPTIONS = {
    "layers": ("num_hidden_layers", 16),
    "hidden": ("hidden_size", 2048),
    "ffn": ("intermediate_size", 8192),
    "heads": ("num_attention_heads", 32),
    "kv-groups": ("num_key_value_heads", 8),
    "vocab": ("vocab_size", 49_152),
}
"""The field of `LlamaConfig` and the default of each option; those of about a billion numbers."""


def add_size_options(options: argparse.ArgumentParser) -> None:
    """Add an option for each size: `--layers`, `--hidden`, and so on."""
    for name, (_, default) in _OPTIONS.items():
        options.add_argument(f"--{name}", type=int, default=default)


def read_sizes(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the sizes that were given, by the fields of `LlamaConfig`."""
    return {
        field: getattr(arguments, name.replace("-", "_")) for name, (field, _) in _OPTIONS.items()
    }
