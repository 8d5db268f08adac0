"""An artefact of a tiny model, and changes to the files of its folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.artefact.folder import Artefact
from pruners.artefact.table import Accuracy, Cost, Quality, ReaderCost, ReaderQuality, Table
from pruners.correction import Correction, InputCorrection, LowRankCorrection, RefitCorrection
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.variant import Block, VariantSpec, depth_spec, intersect, width_spec

SHAPE = Shape(layers=3, hidden=64, heads=4, kv_groups=2, head_dim=16, ffn=96, vocab=97)


def example_artefact() -> Artefact:
    """Return an artefact with a narrower, a shallower and a mixed variant; corrections for two."""
    width, depth = width_spec(SHAPE, 0.5), depth_spec(SHAPE, [1])
    variants = (width, depth, intersect(depth, width))
    generator = torch.Generator().manual_seed(0)
    return Artefact(
        model_name="tiny",
        fingerprint="0123456789abcdef",
        shape=SHAPE,
        ffn_order=torch.stack([torch.randperm(96, generator=generator).int() for _ in range(3)]),
        kv_order=torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.int32),
        variants=variants,
        corrections={v.name: example_corrections(v, generator) for v in (width, variants[2])},
        table=Table(
            evaluation={"hash": "abc", "tokens": 60},
            quality={v.name: Quality(0.5 + i, 0.7, 40.25) for i, v in enumerate(variants)},
            kv_quality={64: Quality(0.1, 0.9, 30.5)},
            cost={v.name: Cost(1000, 0.5, 0.75, 2000, 8) for v in variants},
            eviction={"snap": {"50%": Quality(0.2, 0.8, 31.0)}},
            tasks={"arc": {"base": Accuracy(10, 0.5, None, 0.1, 1.0)}},
            speed={"0123": {"decode": {"base": {"1x128": 0.25}}}},
            samples={"How?": {"base": "So."}},
        ),
        provenance={"recipe": {"seed": 0}},
    )


def artefact_with_readers() -> Artefact:
    """Return the example with readers of two depths, two of them with the same maps."""
    generator = torch.Generator().manual_seed(1)
    readers = (
        PromptReader("read-80", 2),
        PromptReader("read-60", 1, last=8, numbers=True),
        PromptReader("read-50", 1),
    )
    artefact = example_artefact()
    measured = {
        "256-1024": ReaderQuality(0.04, 0.01, 0.9, 8),
        "all": ReaderQuality(0.05, 0.0, 1.0, 9),
    }
    table = replace(
        artefact.table,
        reader_quality={"read-80": measured},
        reader_cost={"read-80": ReaderCost(0.8, 4160, 4416)},
        reading_tasks={"passkey-200": {"read-80": Accuracy(10, 0.9, None, 0.1, 1.0)}},
    )
    return replace(
        artefact,
        table=table,
        readers={reader.name: reader for reader in readers},
        maps={
            depth: KVMaps(depth, torch.randn(3 - depth, 64, 65, generator=generator)).quantised()
            for depth in (1, 2)
        },
    )


def example_corrections(spec: VariantSpec, generator: torch.Generator) -> dict[Block, Correction]:
    """Return a low rank for each `down` but the last, which is refitted; exact in bfloat16."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16()

    found: dict[Block, Correction] = {
        Block(layer, "mlp"): LowRankCorrection(draw(64), draw(64, 4), draw(4, width))
        for layer, width in enumerate(spec.ffn)
        if width
    }
    found[Block(2, "mlp")] = RefitCorrection(draw(64), draw(64, spec.ffn[2]))
    groups = spec.kv_groups[0]
    entry = InputCorrection(
        draw(64), draw(groups * 4 * 16, 4), draw(4, 64)
    )  # two queries, a key, a value
    found[Block(0, "attention")] = LowRankCorrection(
        draw(64), draw(64, 0), draw(0, groups * 32), entry
    )
    return found


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change the value of a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def truncate(path: Path) -> None:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_corrections(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **binding: str
) -> None:
    """Change stored corrections in place, and the entries of their header that are named."""
    path = folder / "corrections.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**header, **binding})


def edit_order(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of `order.safetensors` in place."""
    order = load_file(folder / "order.safetensors")
    change(order)
    save_file(order, folder / "order.safetensors")


def edit_maps(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **binding: str
) -> None:
    """Change readers' stored maps in place, and the entries of their header that are named."""
    path = folder / "readers.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**header, **binding})
