"""Models in the local store of Ollama, which are GGUF files. Nothing is downloaded or written.

The store has a manifest for each name, in JSON, and the bytes of its layers under their sha256.
"""

import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engine.loading.sources.errors import ModelSourceError

log = logging.getLogger(__name__)

_KIND = "application/vnd.ollama.image."
_IGNORED = ("template", "system", "params", "messages", "projector")
_PART = re.compile(r"[A-Za-z0-9_][\w.-]*")
_REGISTRY, _OWNER, _TAG = "registry.ollama.ai", "library", "latest"


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A name as Ollama has it: `NAME[:TAG]`, `OWNER/NAME[:TAG]` or `HOST/OWNER/NAME[:TAG]`."""

    host: str
    owner: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "OllamaName":
        """Return what a text names. Raises `ModelSourceError` if that is no name."""
        path, _, tag = text.partition(":")
        parts = path.split("/")
        given = [*parts, tag] if ":" in text else parts
        if len(parts) > 3 or not all(_PART.fullmatch(part) for part in given):
            raise ModelSourceError(f"ollama:{text} is no name such as ollama:llama3.2:1b")
        host, owner, model = ([_REGISTRY, _OWNER][: 3 - len(parts)] + parts)[-3:]
        return cls(host, owner, model, tag or _TAG)

    @property
    def name(self) -> str:
        """Return the shortest way to write the name, with its tag unless that is `latest`."""
        parts = [self.host, self.owner, self.model]
        if self.host == _REGISTRY:
            parts = parts[2:] if self.owner == _OWNER else parts[1:]
        return "/".join(parts) + ("" if self.tag == _TAG else f":{self.tag}")

    def manifest(self, store: Path) -> Path:
        """Return where a store has the manifest of this name."""
        return store / "manifests" / self.host / self.owner / self.model / self.tag


def resolve_ollama(text: str) -> Path:
    """Return the GGUF file of an Ollama model, and say in the log what of the model is ignored.

    Raises `ModelSourceError` with what there is.
    """
    name = OllamaName.parse(text)
    for store in _stores():
        manifest = name.manifest(store)
        if manifest.is_file():
            return _file(name, store, manifest)
    places = ", ".join(map(str, _stores()))
    there = ", ".join(sorted(ollama_models())) or "none"
    raise ModelSourceError(
        f"ollama:{name.name} is not in Ollama's store (looked in {places}; there are: {there}); "
        f"get it with `ollama pull {name.name}`"
    )


def ollama_models() -> dict[str, Path]:
    """Return the GGUF file of each model in Ollama's store, by its name; others are left out."""
    found: dict[str, Path] = {}
    for store in _stores():
        with suppress(PermissionError):  # the store of a service that runs as another user
            for manifest in (store / "manifests").glob("*/*/*/*"):
                name = OllamaName(*manifest.relative_to(store / "manifests").parts)
                layers = _layers(manifest)
                blob = _blob(store, layers.get("model", [{}])[0])
                if blob is not None and blob.is_file() and "adapter" not in layers:
                    found.setdefault(name.name, blob)
    return found


def _stores() -> list[Path]:
    """Return the folders in which Ollama may keep models: that of the user, or of its service."""
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given).expanduser()]
    return [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]


def _layers(manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the layers of a manifest by their kind; none if it is damaged."""
    try:
        layers: dict[str, list[dict[str, Any]]] = {}
        for layer in json.loads(manifest.read_text(encoding="utf-8"))["layers"]:
            layers.setdefault(str(layer["mediaType"]).removeprefix(_KIND), []).append(layer)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return layers


def _blob(store: Path, layer: dict[str, Any]) -> Path | None:
    """Return where the bytes of a layer are, if its digest is one."""
    digest = str(layer.get("digest", "")).replace(":", "-")
    return store / "blobs" / digest if re.fullmatch(r"sha256-[0-9a-f]{64}", digest) else None


def _file(name: OllamaName, store: Path, manifest: Path) -> Path:
    """Return the file of a model whose manifest is there, after checking that it is whole."""
    layers = _layers(manifest)
    if "adapter" in layers:
        raise ModelSourceError(f"ollama:{name.name} has an adapter, which is not supported")
    models = layers.get("model", [])
    if len(models) != 1:
        raise ModelSourceError(
            f"ollama:{name.name} names {len(models)} GGUF files in {manifest}, not one"
        )
    blob, size = _blob(store, models[0]), models[0].get("size")
    if blob is None or not blob.is_file() or blob.stat().st_size != size:
        raise ModelSourceError(
            f"ollama:{name.name} is not whole in {store}; get it again with `ollama pull "
            f"{name.name}`"
        )
    ignored = [kind for kind in _IGNORED if kind in layers]
    if ignored:
        log.warning(
            "ollama:%s: Ollama's %s ignored; the chat template and the sampling are those of the "
            "GGUF file",
            name.name,
            f"{', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'}",
        )
    return blob
