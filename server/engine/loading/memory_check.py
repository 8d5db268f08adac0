"""Whether a model fits into the memory that is free here, before anything of it is read."""

import math

import psutil
import torch

from server.engine.backends.native import library as native_library
from server.engine.loading.memory_estimate import (
    MIN_KV_TOKENS,
    PROCESS_BYTES,
    MemoryEstimate,
    Serving,
    StoredModel,
    check_fits,
    check_packed_fits,
    vector_bytes,
)
from server.engine.loading.packed_file import PackedBase
from server.engine.precision import Precision
from telemetry.capacity import CapacityReader


def serving_on(
    device: torch.device, precision: Precision = "auto", context: int | None = None
) -> Serving:
    """Return how a model is served on a device of this machine."""
    return Serving(
        precision,
        gpu=device.type != "cpu",
        packs=native_library.is_available(),
        multiplies_bf16=multiplies_bf16(),
        context=context,
    )


def multiplies_bf16() -> bool:
    """Return whether the processor multiplies bf16 by itself."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free for a server on a device, with what this process has taken.

    It is infinite where the machine does not tell.
    """
    if device.type != "cpu":
        return float(torch.cuda.mem_get_info(device)[0])
    available = CapacityReader().read()["memory_available_bytes"].value
    if available is None:
        return math.inf
    return available + min(PROCESS_BYTES, psutil.Process().memory_info().rss)


def check_memory(model: StoredModel, serving: Serving, device: torch.device) -> None:
    """Raise `MemoryEstimateError` if a model does not fit with the smallest cache."""
    check_fits(model, serving, free_memory(device), MIN_KV_TOKENS)


def check_packed_memory(base: PackedBase, device: torch.device) -> None:
    """Raise `MemoryEstimateError` if packed weights do not fit with the smallest cache.

    Mapped weights that are not in memory would be read from the disk for every token.
    """
    weights, shape = base.weights, base.weights.shape
    needed = MemoryEstimate(
        "int4" if weights.precision == "int4" else "int8",
        weights=sum(tensor.nbytes for tensor in weights.tensors()),
        cache=MIN_KV_TOKENS
        * 2
        * shape.layers
        * shape.kv_groups
        * vector_bytes(shape.head_dim, "bf16"),
        tables=2 * 4 * base.facts.longest * shape.head_dim,
    )
    check_packed_fits(needed, free_memory(device), MIN_KV_TOKENS)
