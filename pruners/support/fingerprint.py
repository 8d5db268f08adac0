"""A model's identity, independent of the precision it was loaded in."""

import hashlib
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor, nn

_SAMPLES_PER_TENSOR = 64


def fingerprint(model: nn.Module) -> str:
    """Return 32 hexadecimal digits that identify a model's weights.

    The SHA-256 hash covers each tensor's name, shape and 64 evenly spaced values. Values are
    rounded to bfloat16 first, so that an fp32 and a bf16 load of one checkpoint give the same
    result. It takes milliseconds; hashing all bytes of a large model would take minutes.
    """
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return fingerprint_of(shapes, lambda name, places: state[name].reshape(-1)[places])


def fingerprint_of(
    shapes: Mapping[str, tuple[int, ...]], sample: Callable[[str, Tensor], Tensor]
) -> str:
    """Return the fingerprint of tensors that need not be in memory.

    `sample` takes a name and places in the flattened tensor, int64 `[up to 64]`, and returns the
    values there, floats of the same shape.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        count = prod(shape)
        places = torch.arange(0, count, max(1, count // _SAMPLES_PER_TENSOR))[:_SAMPLES_PER_TENSOR]
        values = sample(name, places).detach().to(torch.bfloat16).to("cpu").view(torch.int16)
        digest.update(f"{name}{tuple(shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
