"""The folder that `trimtab build` writes and the server reads. JSON and safetensors only.

`variants.json` holds specs and provenance, `order.safetensors` the importance order of each layer,
`corrections.safetensors` what variants have of their own (a tensor that several have once),
`table.json` what was measured of each.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.errors import UserError
from pruners.files import Kind, replaced_folder, write_json
from pruners.measure.table import SCHEMA, Table, read_table
from pruners.order import Order
from pruners.recovery import Correction, LowRank, RecoveryError, from_tensors, to_tensors
from pruners.variant import Block, VariantSpec

_ORDER, _CORRECTIONS = "order.safetensors", "corrections.safetensors"
ARTEFACT = Kind(
    "artefact",
    marks=("variants.json",),
    holds=(
        "variants.json", "table.json", _ORDER, _CORRECTIONS, "sensitivity.json", "report/",
        "report/report.md", "report/*.png",
    ),
)  # fmt: skip
"""What may lie in the folder, with what the server's other commands add to it."""
_RANK_AXIS = {"up": 1, "down": 0}
_SCALE = ".scale"


class ArtefactError(UserError):
    """The artefact is missing, damaged, or was built for another model. One clear line."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """Orders, specs, corrections and measurements, bound to one model.

    `ffn_order` is `[layers, ffn]`, `kv_order` `[layers, kv_groups]`: most important first.
    `corrections` are by variant, and fit the units that the order puts first.
    """

    model_name: str
    fingerprint: str
    shape: Shape
    ffn_order: torch.Tensor
    kv_order: torch.Tensor
    variants: tuple[VariantSpec, ...]
    table: Table
    corrections: dict[str, dict[Block, Correction]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> Order:
        """Both orders, ready to index with."""
        return Order(self.ffn_order.long(), self.kv_order.long())

    def save(self, folder: Path) -> None:
        """Writes the folder under a temporary name and renames it, replacing an earlier artefact.

        Raises `TargetError` for anything else that is in the way.
        """
        order = {
            "ffn_order": self.ffn_order.to(torch.int32).contiguous(),
            "kv_order": self.kv_order.to(torch.int32).contiguous(),
        }
        own, shared = _once(self.corrections)
        variants = {
            "schema": SCHEMA,
            "model": {
                "name": self.model_name,
                "fingerprint": self.fingerprint,
                "shape": asdict(self.shape),
            },
            "corrected": shared,
            "provenance": self.provenance,
            "variants": [
                {"name": v.name, "kv_groups": list(v.kv_groups), "ffn": list(v.ffn)}
                for v in self.variants
            ],
        }
        with replaced_folder(folder, ARTEFACT) as staging:
            save_file(order, staging / _ORDER)
            if self.corrections:
                save_file(own, staging / _CORRECTIONS, self._binding())
            write_json(staging / "variants.json", variants)
            self.table.save(staging / "table.json")

    def identity(self) -> str:
        """Equal for artefacts that would be measured alike: 32 hexadecimal digits."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self.order.identity().encode())
        digest.update(repr(self.variants).encode())
        for name, blocks in self.corrections.items():
            for key, tensor in to_tensors(blocks).items():
                digest.update(f"{name}/{key}".encode())
                digest.update(tensor.float().numpy().tobytes())
        return digest.hexdigest()[:32]

    def check_base(self, identity: str) -> None:
        """Raises `ArtefactError` unless it was built for the model of this fingerprint."""
        if identity != self.fingerprint:
            raise ArtefactError(
                f"the artefact was built for '{self.model_name}' ({self.fingerprint}), not for "
                f"this model ({identity}); build one with `trimtab build`"
            )

    def _binding(self) -> dict[str, str]:
        """What the corrections were made for; another order would permute their inputs."""
        return {"fingerprint": self.fingerprint, "order": self.order.identity()}


def load_artefact(folder: Path) -> Artefact:
    """Reads and checks an artefact folder. Raises `ArtefactError` with one line."""
    try:
        variants = json.loads((folder / "variants.json").read_text())
        table = json.loads((folder / "table.json").read_text())
        order = load_file(folder / _ORDER)
    except FileNotFoundError as error:
        raise ArtefactError(f"artefact {folder}: {Path(error.filename).name} is missing") from error
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError, OSError) as error:
        raise ArtefactError(f"artefact {folder} is damaged: {error}") from error
    if not isinstance(variants, dict) or not isinstance(table, dict):
        raise ArtefactError(f"artefact {folder} is damaged: its JSON files must hold objects")
    if variants.get("schema") != SCHEMA or table.get("schema") != SCHEMA:
        raise ArtefactError(
            f"artefact {folder} has schema {variants.get('schema')}, this version reads {SCHEMA}; "
            "build it again with `trimtab build`"
        )
    try:
        artefact = Artefact(
            model_name=variants["model"]["name"],
            fingerprint=variants["model"]["fingerprint"],
            shape=Shape(**variants["model"]["shape"]),
            ffn_order=order["ffn_order"],
            kv_order=order["kv_order"],
            variants=tuple(
                VariantSpec(v["name"], tuple(v["kv_groups"]), tuple(v["ffn"]))
                for v in variants["variants"]
            ),
            table=read_table(table),
            provenance=variants["provenance"],
        )
        corrected = {name: dict(shared) for name, shared in variants["corrected"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"artefact {folder} is damaged: {error!r}") from error
    _check(artefact, folder)
    return replace(artefact, corrections=_read_corrections(artefact, corrected, folder))


def _check(artefact: Artefact, folder: Path) -> None:
    shape = artefact.shape
    for name, order, width in (
        ("ffn_order", artefact.ffn_order, shape.ffn),
        ("kv_order", artefact.kv_order, shape.kv_groups),
    ):
        if tuple(order.shape) != (shape.layers, width):
            raise ArtefactError(f"artefact {folder}: {name} has shape {tuple(order.shape)}")
        if not torch.equal(order.sort(dim=1).values.long(), torch.arange(width).expand_as(order)):
            raise ArtefactError(f"artefact {folder}: {name} is not a permutation in every layer")
    for spec in artefact.variants:
        try:
            spec.check(shape)
        except ValueError as error:
            raise ArtefactError(f"artefact {folder}: {error}") from error
        if spec.name not in artefact.table.quality:
            raise ArtefactError(f"artefact {folder}: variant '{spec.name}' has no measured quality")


def _once(
    corrections: Mapping[str, Mapping[Block, Correction]],
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, str]]]:
    """Each tensor under the first variant that has it; for the others, whose it is."""
    # All of them stay alive meanwhile: an id is good for as long as its tensor.
    named = {variant: to_tensors(blocks) for variant, blocks in corrections.items()}
    first: dict[int, str] = {}
    own: dict[str, torch.Tensor] = {}
    shared: dict[str, dict[str, str]] = {}
    for variant, tensors in named.items():
        shared[variant] = {}
        for name, tensor in tensors.items():
            owner = first.setdefault(id(tensor), variant) if tensor.numel() else variant
            if owner == variant:
                own |= {f"{variant}/{key}": value for key, value in _stored(name, tensor).items()}
            else:
                shared[variant][name] = owner
    return own, shared


def _stored(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Low ranks in 8 bits with a scale for each rank, everything else in bfloat16."""
    kind = name.rpartition(".")[2]
    if kind not in _RANK_AXIS or not tensor.numel():
        return {name: tensor.to(torch.bfloat16).contiguous()}
    scale = tensor.float().abs().amax(1 - _RANK_AXIS[kind], keepdim=True) / 127
    codes = (tensor.float() / scale.clamp_min(1e-30)).round().to(torch.int8)
    return {name: codes.contiguous(), f"{name}{_SCALE}": scale}


def _restored(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `_stored` was given, rounded. Raises `KeyError` for codes without their scale."""
    return {
        name: named[f"{name}{_SCALE}"] * tensor if tensor.dtype == torch.int8 else tensor
        for name, tensor in named.items()
        if not name.endswith(_SCALE)
    }


def _read_corrections(
    artefact: Artefact, corrected: Mapping[str, Mapping[str, str]], folder: Path
) -> dict[str, dict[Block, Correction]]:
    """Of every variant in `corrected`; foreign, cut short or not finite ones are refused."""
    if not corrected:
        return {}
    named: dict[str, dict[str, torch.Tensor]] = {variant: {} for variant in corrected}
    try:
        with safe_open(folder / _CORRECTIONS, framework="pt") as file:
            if file.metadata() != artefact._binding():
                raise ArtefactError(f"artefact {folder}: {_CORRECTIONS} belongs to another one")
            keys = file.keys()
            for key in keys:
                variant, _, name = key.partition("/")
                named[variant][name] = file.get_tensor(key)
        own = {variant: _restored(tensors) for variant, tensors in named.items()}
        for variant, shared in corrected.items():
            named[variant] = own[variant] | {n: own[owner][n] for n, owner in shared.items()}
        found = {variant: from_tensors(tensors) for variant, tensors in named.items()}
    except FileNotFoundError as error:
        raise ArtefactError(f"artefact {folder}: {_CORRECTIONS} is missing") from error
    except (SafetensorError, RecoveryError, KeyError, OSError) as error:
        raise ArtefactError(f"artefact {folder} is damaged: {_CORRECTIONS}: {error}") from error
    specs = {spec.name: spec for spec in artefact.variants}
    for variant, corrections in found.items():
        for block, correction in corrections.items():
            wrong = _misfit(block, correction, specs.get(variant), artefact.shape)
            if wrong:
                raise ArtefactError(
                    f"artefact {folder}: the correction of '{variant}', layer {block.layer} "
                    f"{block.part}, {wrong}"
                )
    return found


def _misfit(
    block: Block, correction: Correction, spec: VariantSpec | None, shape: Shape
) -> str | None:
    if spec is None or not block.layer < shape.layers:
        return "is of no variant or layer that there is"
    size = shape.queries_per_group * shape.head_dim
    attention = block.part == "attention"
    width = spec.kv_groups[block.layer] * size if attention else spec.ffn[block.layer]
    if correction.kept != width or len(correction.bias) != shape.hidden:
        return f"is for {correction.kept} inputs, not for {width}"
    entry = correction.entry if isinstance(correction, LowRank) else None
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
