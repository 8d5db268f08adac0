"""Builds a `Runner` for a loaded model: its cache, its scheduler and its decoder."""

import logging
import math

import torch

from pruners.artefact.table import Table
from server.engine.config import EngineConfig, EngineConfigError
from server.engine.loading.load import LoadedModel, open_decoder
from server.engine.loading.memory_estimate import MIN_KV_TOKENS
from server.engine.reading_depth import ReadingDepths
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.speculation.drafting import Drafter, choose_drafter

log = logging.getLogger(__name__)

_KV_SHARE = 0.5  # of the free memory, for the cache, unless its size is set
_FEW_TOKENS = 16_384  # a cache of fewer is in 8 bits, if it can be


def build_runner(model: LoadedModel, config: EngineConfig, free_bytes: float | None) -> Runner:
    """Return a runner over a new KV cache.

    Unless `config` sets its size, the cache takes at most half of `free_bytes`, or of a GPU's
    free memory if the weights are there. Raises `EngineConfigError` if there is no memory for it,
    or if the weights do not go with the type of cache.
    """
    weights = model.weights
    if config.kv_cache == "int8" and not weights.supports_int8_cache:
        raise EngineConfigError(
            f"kv_cache int8 needs int4 or int8 weights, not {weights.precision}"
        )
    if weights.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(weights.device)
    dtype = _cache_dtype(model, config, free_bytes)
    slots, size = _cache_slots(model, config, dtype, free_bytes)
    try:
        decoder = open_decoder(model, slots, dtype)
    except (MemoryError, RuntimeError, TypeError) as error:  # how PyTorch says that it cannot
        raise EngineConfigError(
            f"{size}, which cannot be allocated; set kv_tokens lower"
        ) from error
    limits = SchedulerLimits(config.max_running, config.step_tokens, config.speculate)
    return Runner(
        decoder,
        Scheduler(decoder.cache, limits, reading_depths(model)),
        drafter_of(model),
    )


def _cache_dtype(model: LoadedModel, config: EngineConfig, free_bytes: float | None) -> torch.dtype:
    """Return the type of the cache's numbers: of `auto` the larger one if there is room for it."""
    weights = model.weights
    if config.kv_cache != "auto":
        return torch.int8 if config.kv_cache == "int8" else weights.dtype
    if config.kv_tokens is not None or free_bytes is None or not weights.supports_int8_cache:
        return weights.dtype
    wanted = min(_FEW_TOKENS, config.max_running * weights.context)
    slots = free_bytes * _KV_SHARE // _token_bytes(model, weights.dtype)
    if slots >= wanted:
        return weights.dtype
    log.info("the KV cache is in 8 bits: there is room for %d tokens only in %s", slots,
             weights.dtype)  # fmt: skip
    return torch.int8


def _token_bytes(model: LoadedModel, dtype: torch.dtype) -> int:
    """Return what a token takes in a cache of this type."""
    shape = model.weights.shape
    vector = shape.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)  # with its scale
    return 2 * shape.layers * shape.kv_groups * vector


def reading_depths(model: LoadedModel) -> ReadingDepths:
    """Return what says how deep prompts are read by the model's readers."""
    layers = model.weights.shape.layers
    return ReadingDepths(layers, model.readers.values(), model.token_kinds)


def drafter_of(model: LoadedModel) -> Drafter | None:
    """Return what drafts by the variant of the model that gains most by it, if any does."""
    table = Table() if model.artefact is None else model.artefact.table
    return choose_drafter(model.variants, table)


def _cache_slots(
    model: LoadedModel, config: EngineConfig, dtype: torch.dtype, free_bytes: float | None
) -> tuple[int, str]:
    """Return how many tokens the cache shall hold, and a phrase that says its size.

    Raises `EngineConfigError` if they take more than `free_bytes`.
    """
    token_bytes = _token_bytes(model, dtype)
    slots = config.kv_tokens or config.max_running * model.weights.context
    if free_bytes is not None and config.kv_tokens is None:
        slots = min(slots, max(int(free_bytes * _KV_SHARE) // token_bytes, MIN_KV_TOKENS))
    size = f"a cache of {slots:,} tokens takes {slots * token_bytes / 1e9:.1f} GB"
    available = math.inf if free_bytes is None else free_bytes
    if slots * token_bytes > available:
        raise EngineConfigError(f"{size}, {available / 1e9:.1f} GB are free; set kv_tokens lower")
    return slots, size
