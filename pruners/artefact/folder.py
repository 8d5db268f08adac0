"""The folder that `trimtab build` writes and the server reads. JSON and safetensors only.

`variants.json` holds specs and provenance, `order.safetensors` the importance order of each layer,
`corrections.safetensors` the corrections of all variants (a tensor that several share once),
`readers.json` and `readers.safetensors` the readers and their maps, if there are any, `table.json`
the measurements.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pruners.architecture import Shape
from pruners.artefact.stored_corrections import (
    encode_corrections,
    find_mismatch,
    read_corrections,
)
from pruners.artefact.stored_orders import read_orders
from pruners.artefact.stored_readers import (
    MAPS,
    READERS,
    check_readers,
    load_readers,
    readers_digest,
    save_readers,
)
from pruners.artefact.table import SCHEMA, Table, TableError, read_table
from pruners.correction import Correction, to_tensors
from pruners.data.readers import ReadError, read_json
from pruners.reading.maps import KVMaps
from pruners.reading.reader import FULL, PromptReader
from pruners.realization.order import Order
from pruners.support.errors import UserError
from pruners.support.files import FolderKind, replace_folder, write_json
from pruners.support.validation import EXACT, validate
from pruners.variant import BASE, Block, VariantSpec

_ORDER, _CORRECTIONS = "order.safetensors", "corrections.safetensors"
ARTEFACT = FolderKind(
    "artefact",
    markers=("variants.json",),
    allowed=(
        "variants.json", "table.json", _ORDER, _CORRECTIONS, READERS, MAPS, "sensitivity.json",
        "report/", "report/report.md", "report/*.png",
    ),
)  # fmt: skip
"""What may lie in the folder, including what other commands add to it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = (BASE, FULL, "refuse")  # the unpruned model, a prompt read in full, and no answer


class ArtefactError(UserError):
    """The artefact is missing, damaged, or was built for another model. One line."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """Orders, specs, corrections and measurements, bound to the model of one fingerprint.

    `ffn_order` is int32 `[layers, ffn]`, `kv_order` int32 `[layers, kv_groups]`: indices of units,
    the most important first. `corrections` are by variant, and fit the units that the order puts
    first. `readers` are by name, `maps` by depth, for the depths that readers have; both are empty
    for an artefact without readers. `provenance` says how the artefact was made.
    """

    model_name: str
    fingerprint: str
    shape: Shape
    ffn_order: torch.Tensor
    kv_order: torch.Tensor
    variants: tuple[VariantSpec, ...]
    table: Table
    corrections: dict[str, dict[Block, Correction]] = field(default_factory=dict)
    readers: dict[str, PromptReader] = field(default_factory=dict)
    maps: dict[int, KVMaps] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> Order:
        """Both orders as int64, ready to index with."""
        return Order(self.ffn_order.long(), self.kv_order.long())

    def save(self, folder: Path) -> None:
        """Write the folder under a temporary name and rename it, replacing an earlier artefact.

        Raises `TargetError` for anything else that is in the way, `TableError` for measurements
        that could not be read again, `ValueError` for readers that could not.
        """
        _check_reader_names(self)
        check_readers(self.readers, self.maps, self.shape)
        order = {
            "ffn_order": self.ffn_order.to(torch.int32).contiguous(),
            "kv_order": self.kv_order.to(torch.int32).contiguous(),
        }
        stored, shared = encode_corrections(self.corrections)
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
        with replace_folder(folder, ARTEFACT) as staging:
            save_file(order, staging / _ORDER)
            if self.corrections:
                save_file(stored, staging / _CORRECTIONS, self._binding())
            if self.readers:
                save_readers(staging, self.fingerprint, self.readers, self.maps)
            write_json(staging / "variants.json", variants)
            self.table.save(staging / "table.json")

    def identity(self) -> str:
        """Return a hash of all that measurements depend on, 32 hexadecimal digits."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self.order.digest().encode())
        digest.update(repr(self.variants).encode())
        for name, blocks in self.corrections.items():
            for key, tensor in to_tensors(blocks).items():
                digest.update(f"{name}/{key}".encode())
                digest.update(tensor.float().numpy().tobytes())
        if self.readers:
            digest.update(readers_digest(self.readers, self.maps).encode())
        return digest.hexdigest()[:32]

    def check_base(self, identity: str) -> None:
        """Raise `ArtefactError` unless it was built for the model of the fingerprint `identity`."""
        if identity != self.fingerprint:
            raise ArtefactError(
                f"the artefact was built for '{self.model_name}' ({self.fingerprint}), not for "
                f"this model ({identity}); build one with `trimtab build`"
            )

    def _binding(self) -> dict[str, str]:
        """Return what the corrections were made for; another order would permute their inputs."""
        return {"fingerprint": self.fingerprint, "order": self.order.digest()}


@dataclass(frozen=True, slots=True)
class _BaseModel:
    name: str
    fingerprint: str
    shape: Shape
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class _VariantsFile:
    """What `variants.json` holds.

    `corrected` has an entry for each variant with corrections: the owners of its shared tensors.
    """

    schema: int
    model: _BaseModel
    variants: tuple[VariantSpec, ...]
    corrected: dict[str, dict[str, str]]
    provenance: dict[str, Any]
    __pydantic_config__ = EXACT


def load_artefact(folder: Path) -> Artefact:
    """Read and check an artefact folder. Raises `ArtefactError`."""
    variants, table = (_read_object(folder, name) for name in ("variants.json", "table.json"))
    if variants.get("schema") != SCHEMA or table.get("schema") != SCHEMA:
        raise ArtefactError(
            f"artefact {folder} has schema {variants.get('schema')}, this version reads {SCHEMA}; "
            "build it again with `trimtab build`"
        )
    try:
        file = validate(_VariantsFile, variants)
    except ValueError as error:
        raise ArtefactError(f"artefact {folder} is damaged: variants.json: {error}") from error
    try:
        measurements = read_table(table)
    except TableError as error:
        raise ArtefactError(f"artefact {folder} is damaged: table.json: {error}") from error
    try:
        ffn_order, kv_order = read_orders(folder / _ORDER, file.model.shape)
        readers, maps = load_readers(folder, file.model.fingerprint, file.model.shape)
    except ValueError as error:
        raise ArtefactError(f"artefact {folder}: {error}") from error
    artefact = Artefact(
        model_name=file.model.name,
        fingerprint=file.model.fingerprint,
        shape=file.model.shape,
        ffn_order=ffn_order,
        kv_order=kv_order,
        variants=file.variants,
        table=measurements,
        readers=readers,
        maps=maps,
        provenance=file.provenance,
    )
    try:
        _check(artefact, file.corrected)
    except ValueError as error:
        raise ArtefactError(f"artefact {folder}: {error}") from error
    return replace(artefact, corrections=_read_corrections(artefact, file.corrected, folder))


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        raise ArtefactError(f"artefact {folder}: {name} is missing")
    try:
        value = read_json(folder / name)
    except ReadError as error:
        raise ArtefactError(f"artefact {folder} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"artefact {folder} is damaged: {name} must hold an object")
    return value


def _check(artefact: Artefact, corrected: Mapping[str, object]) -> None:
    """Raise `ValueError` for variants that do not fit the model, each other or the table."""
    shape, table = artefact.shape, artefact.table
    sizes = asdict(shape)
    wrong = [n for n, size in sizes.items() if not isinstance(size, bool) and size < 1]
    if wrong or shape.heads % shape.kv_groups:
        raise ValueError(f"model.shape has {', '.join(f'{n} {s}' for n, s in sizes.items())}")
    names: set[str] = set()
    for spec in artefact.variants:
        if not _NAME.fullmatch(spec.name) or spec.name in _RESERVED:
            raise ValueError(f"{spec.name!r} cannot be the name of a variant")
        if spec.name in names:
            raise ValueError(f"two variants are named '{spec.name}'")
        names.add(spec.name)
        spec.check(shape)
    _check_reader_names(artefact)
    for what, known, rows in (
        ("quality", names, table.quality),
        ("cost", {BASE, *names}, table.cost),
        ("corrected", names, corrected),
    ):
        unknown = sorted(set(rows) - known)
        if unknown:
            raise ValueError(f"{what}.{unknown[0]} is of no variant")
    for what, rows in (
        ("reader_quality", table.reader_quality),
        ("reader_cost", table.reader_cost),
    ):
        unknown = sorted(set(rows) - artefact.readers.keys())
        if unknown:
            raise ValueError(f"{what}.{unknown[0]} is of no reader")
    for what, measured in (("quality", set(table.quality)), ("cost", set(table.cost))):
        missing = sorted(names - measured)
        if missing:
            raise ValueError(f"variant '{missing[0]}' has no measured {what}")


def _check_reader_names(artefact: Artefact) -> None:
    """Raise `ValueError` for readers that a request or an action could not name."""
    taken = {*_RESERVED, *(spec.name for spec in artefact.variants)}
    for name in artefact.readers:
        if not _NAME.fullmatch(name) or name in taken:
            raise ValueError(f"{name!r} cannot be the name of a reader")


def _read_corrections(
    artefact: Artefact, corrected: Mapping[str, Mapping[str, str]], folder: Path
) -> dict[str, dict[Block, Correction]]:
    """Return the corrections of every variant in `corrected`.

    Raises `ArtefactError` for those of another artefact, and for damaged or not finite ones.
    """
    try:
        corrections = read_corrections(folder / _CORRECTIONS, corrected, artefact._binding())
    except ValueError as error:
        raise ArtefactError(f"artefact {folder}: {error}") from error
    specs = {spec.name: spec for spec in artefact.variants}
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            mismatch = find_mismatch(block, correction, specs.get(variant), artefact.shape)
            if mismatch:
                raise ArtefactError(
                    f"artefact {folder}: the correction of '{variant}', layer {block.layer} "
                    f"{block.part}, {mismatch}"
                )
    return corrections
