"""A model's identity, independent of the precision it was loaded in."""

import hashlib

import torch
from torch import nn

_SAMPLES_PER_TENSOR = 64


def fingerprint(model: nn.Module) -> str:
    """Return 32 hexadecimal digits that identify a model's weights.

    The SHA-256 hash covers each tensor's name, shape and 64 evenly spaced values. Values are
    rounded to bfloat16 first, so that an fp32 and a bf16 load of one checkpoint give the same
    result. It takes milliseconds; hashing all bytes of a large model would take minutes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        values = flat[::step][:_SAMPLES_PER_TENSOR].to(torch.bfloat16).to("cpu").view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
