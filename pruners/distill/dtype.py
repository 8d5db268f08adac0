"""The number format in which a frozen base and its slices compute in training."""

from collections.abc import Mapping

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where `device` multiplies it faster than fp32 (GPUs, some CPUs), else fp32.

    Trained tensors are fp32 either way.
    """
    if device.type != "cpu":
        return torch.bfloat16
    # Older versions of PyTorch do not have this function.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32
