"""The numbers in which a frozen base and its slices compute in training."""

from collections.abc import Mapping

import torch


def quick_dtype(device: torch.device) -> torch.dtype:
    """bf16 where `device` multiplies it quicker than fp32, as GPUs and some CPUs do; else fp32.

    What is trained is kept in fp32 either way.
    """
    if device.type != "cpu":
        return torch.bfloat16
    # Not in every torch that we accept.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    quick = found.get("avx512_bf16") or found.get("amx_bf16")
    return torch.bfloat16 if quick else torch.float32
