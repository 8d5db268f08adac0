"""Corrections as an artefact stores them: each shared tensor once, low ranks in 8 bits."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pruners.architecture import Shape
from pruners.correction import Correction, LowRankCorrection, from_tensors, to_tensors
from pruners.variant import Block, VariantSpec

_RANK_AXIS = {"up": 1, "down": 0}
_SCALE = ".scale"


def encode_corrections(
    corrections: Mapping[str, Mapping[Block, Correction]],
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, str]]]:
    """Return the tensors to store, named `variant/tensor`, and the owners of shared ones.

    A tensor that several variants have (the same object) is stored for the first of them. The
    second mapping says, for each other variant, under which variant each shared tensor is stored.
    """
    # All tensors stay alive meanwhile: an id is unique for as long as its object lives.
    named = {variant: to_tensors(blocks) for variant, blocks in corrections.items()}
    owners: dict[int, str] = {}
    stored: dict[str, torch.Tensor] = {}
    shared: dict[str, dict[str, str]] = {}
    for variant, tensors in named.items():
        shared[variant] = {}
        for name, tensor in tensors.items():
            owner = owners.setdefault(id(tensor), variant) if tensor.numel() else variant
            if owner == variant:
                encoded = _encode(name, tensor)
                stored |= {f"{variant}/{key}": value for key, value in encoded.items()}
            else:
                shared[variant][name] = owner
    return stored, shared


def _encode(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return low ranks as int8 with an fp32 scale for each rank, everything else as bfloat16.

    `up` is `[out, rank]`, its scale `[1, rank]`; `down` is `[rank, in]`, its scale `[rank, 1]`.
    """
    kind = name.rpartition(".")[2]
    if kind not in _RANK_AXIS or not tensor.numel():
        return {name: tensor.to(torch.bfloat16).contiguous()}
    scale = tensor.float().abs().amax(1 - _RANK_AXIS[kind], keepdim=True) / 127
    codes = (tensor.float() / scale.clamp_min(1e-30)).round().to(torch.int8)
    return {name: codes.contiguous(), f"{name}{_SCALE}": scale}


def decode_tensors(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of one variant from what is stored: fp32 low ranks, bfloat16 others.

    Raises `KeyError` for codes without their scale, `ValueError` for other types or shapes than
    `encode_corrections` gives.
    """
    decoded = {}
    for name, tensor in stored.items():
        if name.endswith(_SCALE):
            continue
        if tensor.dtype == torch.int8:
            axis = _RANK_AXIS.get(name.rpartition(".")[2])
            scale = stored[f"{name}{_SCALE}"]
            if axis is None or tensor.dim() != 2 or scale.numel() != tensor.shape[axis]:
                raise ValueError(f"{name} has a scale of shape {tuple(scale.shape)}")
            tensor = scale.float().reshape(*(-1 if i == axis else 1 for i in (0, 1))) * tensor
        elif tensor.dtype != torch.bfloat16:
            raise ValueError(f"{name} is of {tensor.dtype}")
        decoded[name] = tensor
    return decoded


def read_corrections(
    path: Path, corrected: Mapping[str, Mapping[str, str]], binding: Mapping[str, str]
) -> dict[str, dict[Block, Correction]]:
    """Return the corrections of every variant in `corrected`, which has the owners of shared ones.

    Raises `ValueError` for a file that is missing, damaged, or bound to something else.
    """
    if not corrected:
        return {}
    stored: dict[str, dict[str, torch.Tensor]] = {variant: {} for variant in corrected}
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata()
            keys = file.keys()
            for key in keys:
                variant, _, name = key.partition("/")
                stored[variant][name] = file.get_tensor(key)
        owned = {variant: decode_tensors(tensors) for variant, tensors in stored.items()}
        corrections = {
            variant: from_tensors(
                owned[variant] | {name: owned[owner][name] for name, owner in shared.items()}
            )
            for variant, shared in corrected.items()
        }
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if found != binding:
        raise ValueError(f"{path.name} belongs to another artefact")
    return corrections


def find_mismatch(
    block: Block, correction: Correction, spec: VariantSpec | None, shape: Shape
) -> str | None:
    """Return what keeps a correction from fitting its variant, as the end of a sentence, or None.

    `spec` is the variant, None if the artefact does not have it; `shape` is the model's.
    """
    if spec is None or not block.layer < shape.layers:
        return "is of no variant or layer that there is"
    size = shape.queries_per_group * shape.head_dim
    attention = block.part == "attention"
    width = spec.kv_groups[block.layer] * size if attention else spec.ffn[block.layer]
    if correction.input_width != width or len(correction.bias) != shape.hidden:
        return f"is for {correction.input_width} inputs, not for {width}"
    entry = correction.entry if isinstance(correction, LowRankCorrection) else None
    if entry is not None:
        groups = shape.queries_per_group + 2
        features = (
            width // size * groups * shape.head_dim if attention else width * (1 + shape.gated)
        )
        if (len(entry.up), len(entry.norm)) != (features, shape.hidden) or width == 0:
            return f"has an entry of {len(entry.up)} features, not of {features}"
    if not all(bool(tensor.isfinite().all()) for tensor in correction.tensors()):
        return "is not finite"
    return None
