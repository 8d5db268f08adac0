"""Finds a model's artefact and reads what it declares, without importing PyTorch."""

import json
from importlib import resources
from pathlib import Path

from pruners.variant import BASE
from server.engine.config import EngineConfigError


def shipped_artefact(name: str) -> Path | None:
    """Return the artefact that comes with the package for a model of this name, if there is one."""
    folder = Path(str(resources.files("pruners"))) / "shipped" / name.lower()
    return folder if folder.exists() else None


def declared_choices(folder: Path) -> tuple[str | None, list[str]]:
    """Return the model's fingerprint and all pairs of a variant and a reader (`base+read-70`).

    First come the variants alone, as `declared_variants` has them. Raises `EngineConfigError`.
    """
    fingerprint, variants = declared_variants(folder)
    path, readers = folder / "readers.json", []
    if path.exists():
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            readers = [str(reader["name"]) for reader in body["readers"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineConfigError(
                f"artefact {folder}: {path.name} is damaged: {error!r}"
            ) from error
    pairs = [f"{variant}+{reader}" for variant in variants for reader in readers]
    return fingerprint, [*variants, *pairs]


def declared_variants(folder: Path) -> tuple[str | None, list[str]]:
    """Return the model's fingerprint and the names of the variants that an artefact declares.

    The base is the first. Only `variants.json` is read. Raises `EngineConfigError`.
    """
    path = folder / "variants.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return str(body["model"]["fingerprint"]), [BASE, *(v["name"] for v in body["variants"])]
    except OSError as error:
        raise EngineConfigError(
            f"artefact {folder}: cannot read {path.name}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineConfigError(f"artefact {folder}: {path.name} is damaged: {error!r}") from error
