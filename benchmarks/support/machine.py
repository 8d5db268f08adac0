"""What the machine can do: the measure beside which kernels and engines are put."""

import time

import torch


def copy_bandwidth() -> float:
    """Return bytes a second, read plus written, of a copy far larger than the caches: best of 5."""
    source = torch.ones(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best
