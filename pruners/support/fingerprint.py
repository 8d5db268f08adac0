"""A model's identity, independent of the precision it was loaded in."""

import hashlib

import torch
from torch import nn

_SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """Hash over every parameter's name, shape and 64 evenly spaced values.

    Values are rounded to bfloat16 first, so that an fp32 and a bf16 load of one checkpoint agree.
    A few milliseconds, where hashing all bytes of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        values = flat[::step][:_SAMPLES].to(torch.bfloat16).to("cpu").view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
