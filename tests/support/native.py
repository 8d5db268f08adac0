"""What tests of the native kernels share: the instruction sets, and decoders to compare."""

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder, Segment
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.library import NativeEngine
from server.engine.backends.native.packed_corrections import pack_corrections
from server.engine.backends.native.packed_maps import pack_maps
from server.engine.backends.native.packed_weights import pack_weights, round_weights
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.cache.kv_cache import KVCache
from tests.support.corrections import corrections_by_name, specs_of
from tests.support.parameters import converted
from tests.support.reading import served_order, tiny_maps
from tests.support.tiny import VOCAB, tiny_model

CPU = torch.device("cpu")
KERNELS = (
    *("avx512bf16", "avx512", "avxvnni", "avx2"),
    *("neoni8mm", "neondot", "neon"),
    "portable",
)
PROMPTS = [[5, 9, 33, 7], list(range(10, 60)), [3], [(7 * i) % VOCAB for i in range(290)]]


def instruction_sets() -> list[str]:
    """Return the instruction sets that this processor and the built kernels have."""
    names = []
    for isa in KERNELS:
        try:
            names.append(NativeEngine(1, isa).isa)
        except RuntimeError:
            continue
    return names


def reference_and_native(
    family: str,
    bits: int,
    cache_dtype: torch.dtype = torch.bfloat16,
    **changes: object,
) -> tuple[PyTorchDecoder, NativeDecoder, dict[str, VariantSpec]]:
    """Return PyTorch's decoder on rounded weights, the native one, and the variants of both.

    Both have the same corrections and maps. `changes` are of the model's configuration.
    """
    rounded = round_weights(converted(tiny_model(family, **changes)), bits)
    packed = pack_weights(converted(tiny_model(family, **changes)), bits)
    maps = tiny_maps(packed.shape)
    order = served_order(packed.shape)
    shape = packed.shape
    specs = specs_of(shape)
    corrections = corrections_by_name(specs, shape)
    reference = PyTorchDecoder(
        rounded,
        KVCache(shape, 2048, torch.float32, CPU),
        convert_corrections(rounded, corrections),
        convert_maps(rounded, maps, order),
    )
    native = NativeDecoder(
        packed,
        KVCache(shape, 2048, cache_dtype, CPU),
        pack_corrections(packed, corrections),
        pack_maps(shape, maps, order),
    )
    return reference, native, specs


def prompt_and_token_logits(decoder: Decoder, specs: dict[str, VariantSpec]) -> Tensor:
    """Return logits of a batch of prompts of several variants, and of one token after each."""
    names = list(specs)
    segments = []
    for index, prompt in enumerate(PROMPTS):
        cache = decoder.cache.open()
        assert cache.reserve(len(prompt) + 2)
        segments.append(Segment(prompt, cache, specs[names[index % len(names)]]))
    logits = [decoder.logits(decoder.forward(segments))]
    next_tokens = [Segment([9], segment.cache, segment.variant) for segment in segments]
    logits.append(decoder.logits(decoder.forward(next_tokens)))
    for segment in segments:
        segment.cache.close()
    return torch.cat(logits)


def kl(expected: Tensor, logits: Tensor) -> float:
    """Return the mean KL divergence of logits `[rows, vocab]` from the expected ones, in nats."""
    return float(
        torch.nn.functional.kl_div(
            logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    )
