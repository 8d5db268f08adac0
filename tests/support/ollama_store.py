"""A made-up store of Ollama, laid out as its programs lay it out."""

import hashlib
import json
from pathlib import Path

_KIND = "application/vnd.ollama.image."


def add_ollama(store: Path, name: str, **layers: bytes) -> Path:
    """Adds a model to a store; returns the file of its weights."""
    listed = []
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    for kind, content in layers.items():
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        about = {"mediaType": _KIND + kind, "digest": f"sha256:{digest}", "size": len(content)}
        listed.append(about)
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    return store / "blobs" / f"sha256-{hashlib.sha256(layers.get('model', b'')).hexdigest()}"
