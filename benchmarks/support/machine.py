"""What the machine can do: the measure beside which kernels and engines are put."""

import time

import torch

_CPU = torch.device("cpu")


def copy_bandwidth(device: torch.device = _CPU) -> float:
    """Return bytes a second, read plus written, of a copy far larger than the caches: best of 5."""
    source = torch.ones(2**28 if device == _CPU else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        _wait_for(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
