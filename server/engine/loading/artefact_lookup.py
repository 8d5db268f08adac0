"""Finds a model's artefact and reads what it declares, without importing PyTorch."""

import json
from importlib import resources
from pathlib import Path

from pruners.variant import BASE
from server.engine.config import EngineConfigError
from server.engine.loading.source import cache_folder


def shipped_artefact(name: str) -> Path | None:
    """Return the artefact that comes with the package for a model of this name, if there is one."""
    folder = Path(str(resources.files("pruners"))) / "shipped" / name.lower()
    return folder if folder.exists() else None


def artefacts_folder() -> Path:
    """Return the folder in the cache where each model's learned or unpacked artefact is kept."""
    return cache_folder() / "artefacts"


def kept_folder(fingerprint: str) -> Path:
    """Return where the artefact of the model with this fingerprint is kept, if there is one."""
    return artefacts_folder() / fingerprint


def kept_artefacts(name: str) -> list[Path]:
    """Return the kept artefacts of models of this name, the newest first.

    Folders that are damaged are left out.
    """
    found = []
    for path in artefacts_folder().glob("[!.]*/variants.json"):
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["model"]["name"] == name:
                found.append((path.stat().st_mtime_ns, path.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [folder for _, folder in sorted(found, reverse=True)]


def likely_artefact(name: str) -> Path | None:
    """Return the artefact that a model of this name will have, if there is one.

    It is the one that comes with the package, or else the newest kept one. Another model can have
    the same name: which one it is, is known once the model's fingerprint is.
    """
    return shipped_artefact(name) or next(iter(kept_artefacts(name)), None)


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
