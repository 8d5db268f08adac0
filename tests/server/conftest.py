"""A live server on a tiny model that has variants, and keeps an audit log."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruners.artefact.folder import load_artefact
from pruners.artefact.table import ReaderCost, ReaderQuality
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from server.engine.loading.load import load_transformers
from server.testing import ServerProcess
from tests.support.models import random_rows
from tests.support.tiny import save_tiny

READERS = (
    PromptReader("read-70", depth=2, last=16),
    PromptReader("read-40", depth=1, last=8, numbers=True),
)
_RECIPE = Recipe(ffn_keep=(0.67, 0.34), shares=(), kv_budgets=(32,), rank=4, keep_all=True)


@pytest.fixture(scope="session")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `varied_server` writes its decisions."""
    return tmp_path_factory.mktemp("logs") / "audit.jsonl"


@pytest.fixture(scope="session")
def varied_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and an artefact of its variants `ffn-67` and `ffn-34`."""
    root = tmp_path_factory.mktemp("varied")
    folder = save_tiny(root / "mine")
    rows = BuildRows(random_rows(6, (40,)), random_rows(2, (70,), seed=4), "random", "other")
    build(load_transformers(folder, torch.float32), "mine", rows, _RECIPE).save(root / "artefact")
    return folder, root / "artefact"


@pytest.fixture(scope="session")
def varied_server(varied_folders: tuple[Path, Path], audit_log: Path) -> Iterator[ServerProcess]:
    """These variants served, two answers at once, every answer read again."""
    folder, artefact = varied_folders
    server = ServerProcess(
        "--model", str(folder), "--artefact", str(artefact), "--max-running", "2",
        log=folder.parent / "server.log", TRIMTAB_THREADS="1", TRIMTAB_SHADOW_SHARE="1",
        TRIMTAB_AUDIT_LOG=str(audit_log), TRIMTAB_TTFT_MS="40", TRIMTAB_METRICS_COMPAT="vllm",
    )  # fmt: skip
    yield server.wait()
    server.stop()


@pytest.fixture(scope="session")
def reading_folders(varied_folders: tuple[Path, Path]) -> tuple[Path, Path]:
    """The tiny model, and its artefact with two readers, whose maps are random."""
    folder, varied = varied_folders
    artefact = load_artefact(varied)
    shape, generator = artefact.shape, torch.Generator().manual_seed(0)
    kv = 2 * shape.kv_groups * shape.head_dim
    maps = {
        depth: torch.randn(shape.layers - depth, kv, shape.hidden + 1, generator=generator)
        for depth in (1, 2)
    }
    measured = replace(
        artefact.table,
        reader_quality={"read-70": {"all": ReaderQuality(0.05, 0.01, 0.9, 12)}},
        reader_cost={"read-70": ReaderCost(0.7, 4160, 4416)},
    )
    with_readers = replace(
        artefact,
        table=measured,
        readers={reader.name: reader for reader in READERS},
        maps={depth: KVMaps(depth, 0.1 * weight) for depth, weight in maps.items()},
    )
    with_readers.save(folder.parent / "reading")
    return folder, folder.parent / "reading"


@pytest.fixture(scope="session")
def reading_server(reading_folders: tuple[Path, Path]) -> Iterator[ServerProcess]:
    """The tiny model served with its readers."""
    folder, artefact = reading_folders
    server = ServerProcess(
        "--model", str(folder), "--artefact", str(artefact),
        log=folder.parent / "reading.log", TRIMTAB_THREADS="1",
    )  # fmt: skip
    yield server.wait()
    server.stop()
