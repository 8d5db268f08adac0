"""What a server says of itself when it is ready, in a few words each."""

import torch

from pruners.support.sizes import size_text
from pruners.variant import BASE
from server.assembly import ServerParts
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.loading.load import LoadedModel
from server.settings import Settings

Summary = dict[str, str]
"""What is said, by its title, in the order in which it is shown."""


def summarize(model: LoadedModel, settings: Settings, parts: ServerParts) -> Summary:
    """Return what is served, and from where."""
    cache = parts.cache
    variants = [BASE, *(name for name in model.variants if name != BASE)]
    taken = ", taken as tokens come" if model.weights.device.type == "cpu" else ""
    summary = {
        "model": ", ".join(settings.served_model_name) or model.name,
        "weights": f"{model.weights.precision}, {size_text(_weight_bytes(model))}",
        "runs on": _device(parts),
        "KV cache": f"room for {cache.arena.capacity:,} tokens "
        f"({size_text(cache.arena.capacity * cache.slot_bytes)}{taken})",
        "at once": f"{settings.max_running} answers of up to {parts.context_tokens:,} tokens "
        "with their prompts",
        "variants": ", ".join(variants),
        "readers": ", ".join(model.readers) or "none: prompts are read in full",
        "policy": settings.policy,
    }
    if len(variants) == 1 and settings.learn != "off":
        when = "while nobody waits" if settings.learn == "idle" else "from now on"
        summary["learning"] = f"variants and readers, {when}"
    return summary


def _device(parts: ServerParts) -> str:
    decoder = parts.running.runner.decoder
    if isinstance(decoder, NativeDecoder):
        return f"CPU, {_count(decoder.threads, 'thread')}, kernels {decoder.isa}"
    if decoder.weights.device.type == "cuda":
        return torch.cuda.get_device_name(decoder.weights.device)
    return f"CPU, {_count(torch.get_num_threads(), 'thread')}, PyTorch"


def _weight_bytes(model: LoadedModel) -> int:
    return sum(tensor.nbytes for tensor in model.weights.tensors())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
