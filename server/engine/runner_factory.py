"""Builds a `Runner` for a loaded model: its cache, its scheduler and its decoder."""

import math

import torch

from pruners.artefact.table import Table
from server.engine.config import EngineConfig, EngineConfigError
from server.engine.loading.load import LoadedModel, open_decoder
from server.engine.reading_depth import ReadingDepths
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.speculation.drafting import choose_drafter

_KV_SHARE = 0.25  # of the free memory, for the cache, unless its size is set
_MIN_KV_TOKENS = 1024  # however little memory is free


def build_runner(model: LoadedModel, config: EngineConfig, free_bytes: float | None) -> Runner:
    """Return a runner over a new KV cache.

    Unless `config` sets its size, the cache takes at most a quarter of `free_bytes`, or of a GPU's
    free memory if the weights are there. Raises `EngineConfigError` if there is no memory for it,
    or if the weights do not go with the type of cache.
    """
    weights = model.weights
    dtype = torch.int8 if config.kv_cache == "int8" else weights.dtype
    if dtype == torch.int8 and not weights.supports_int8_cache:
        raise EngineConfigError(
            f"kv_cache int8 needs int4 or int8 weights, not {weights.precision}"
        )
    if weights.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(weights.device)
    slots, size = _cache_slots(model, config, dtype, free_bytes)
    try:
        decoder = open_decoder(model, slots, dtype)
    except (MemoryError, RuntimeError, TypeError) as error:  # how PyTorch says that it cannot
        raise EngineConfigError(
            f"{size}, which cannot be allocated; set kv_tokens lower"
        ) from error
    limits = SchedulerLimits(config.max_running, config.step_tokens, config.speculate)
    reading = ReadingDepths(weights.shape.layers, model.readers.values(), model.token_kinds)
    table = Table() if model.artefact is None else model.artefact.table
    return Runner(
        decoder,
        Scheduler(decoder.cache, limits, reading),
        choose_drafter(model.variants, table),
    )


def _cache_slots(
    model: LoadedModel, config: EngineConfig, dtype: torch.dtype, free_bytes: float | None
) -> tuple[int, str]:
    """Return how many tokens the cache shall hold, and a phrase that says its size.

    Raises `EngineConfigError` if they take more than `free_bytes`.
    """
    shape = model.weights.shape
    token_bytes = 2 * shape.layers * shape.kv_groups * shape.head_dim * dtype.itemsize
    slots = config.max_running * model.weights.context
    if free_bytes is not None:
        slots = min(slots, max(int(free_bytes * _KV_SHARE) // token_bytes, _MIN_KV_TOKENS))
    slots = config.kv_tokens or slots
    size = f"a cache of {slots:,} tokens takes {slots * token_bytes / 1e9:.1f} GB"
    available = math.inf if free_bytes is None else free_bytes
    if slots * token_bytes > available:
        raise EngineConfigError(f"{size}, {available / 1e9:.1f} GB are free; set kv_tokens lower")
    return slots, size
