"""The folder that `trimtab build` writes and the server reads. JSON and safetensors only.

`variants.json` holds specs and provenance, `order.safetensors` the importance order of each layer,
`table.json` the measured quality of each variant.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.order import Order
from pruners.variant import VariantSpec

SCHEMA = 1


class ArtefactError(ValueError):
    """The artefact is missing, damaged, or was built for another model. One clear line."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Teacher-forced quality of a variant against the base on held-out text.

    `kl` in nats per token, `agreement` the share of equal top-1 tokens, `perplexity` per token.
    """

    kl: float
    agreement: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Artefact:
    """Orders, specs and measured quality, bound to one model.

    `ffn_order` is `[layers, ffn]`, `kv_order` `[layers, kv_groups]`: most important first.
    `quality` is by variant, `kv_quality` by KV budget in tokens, for the base.
    """

    model_name: str
    fingerprint: str
    shape: Shape
    ffn_order: torch.Tensor
    kv_order: torch.Tensor
    variants: tuple[VariantSpec, ...]
    quality: dict[str, Quality]
    kv_quality: dict[int, Quality] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> Order:
        """Both orders, ready to index with."""
        return Order(self.ffn_order.long(), self.kv_order.long())

    def save(self, folder: Path) -> None:
        """Writes the folder under a temporary name and renames it, replacing what was there."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        staging.chmod(0o755)
        order = {
            "ffn_order": self.ffn_order.to(torch.int32).contiguous(),
            "kv_order": self.kv_order.to(torch.int32).contiguous(),
        }
        save_file(order, staging / "order.safetensors")
        variants = {
            "schema": SCHEMA,
            "model": {
                "name": self.model_name,
                "fingerprint": self.fingerprint,
                "shape": asdict(self.shape),
            },
            "provenance": self.provenance,
            "variants": [
                {"name": v.name, "kv_groups": list(v.kv_groups), "ffn": list(v.ffn)}
                for v in self.variants
            ],
        }
        table = {
            "schema": SCHEMA,
            "evaluation": self.evaluation,
            "quality": {name: asdict(q) for name, q in self.quality.items()},
            "kv_quality": {str(budget): asdict(q) for budget, q in self.kv_quality.items()},
        }
        (staging / "variants.json").write_text(_dump(variants))
        (staging / "table.json").write_text(_dump(table))
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / folder.name)
            os.replace(staging, folder)
            shutil.rmtree(old)
        else:
            os.replace(staging, folder)


def load_artefact(folder: Path) -> Artefact:
    """Reads and checks an artefact folder. Raises `ArtefactError` with one line."""
    try:
        variants = json.loads((folder / "variants.json").read_text())
        table = json.loads((folder / "table.json").read_text())
        order = load_file(folder / "order.safetensors")
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
        shape = Shape(**variants["model"]["shape"])
        artefact = Artefact(
            model_name=variants["model"]["name"],
            fingerprint=variants["model"]["fingerprint"],
            shape=shape,
            ffn_order=order["ffn_order"],
            kv_order=order["kv_order"],
            variants=tuple(
                VariantSpec(v["name"], tuple(v["kv_groups"]), tuple(v["ffn"]))
                for v in variants["variants"]
            ),
            quality={name: Quality(**q) for name, q in table["quality"].items()},
            kv_quality={int(budget): Quality(**q) for budget, q in table["kv_quality"].items()},
            provenance=variants["provenance"],
            evaluation=table["evaluation"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"artefact {folder} is damaged: {error!r}") from error
    _check(artefact, folder)
    return artefact


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
        if spec.name not in artefact.quality:
            raise ArtefactError(f"artefact {folder}: variant '{spec.name}' has no measured quality")


def _dump(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=False) + "\n"
