"""Models of the Hugging Face hub: those in its cache, and how they get there.

The cache has the layout of `huggingface_hub`, so other programs find what was downloaded here, and
the other way round. A model that is in the cache is used as it is, without asking the hub.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import build_hf_headers

from server.engine.loading.sources.download import RemoteFile, check_room, download, part_path
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.hub_errors import hub_errors
from server.engine.loading.sources.progress import TransferProgress
from server.engine.loading.sources.quantisation import choose_gguf, gguf_models, quant_label

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_TEXT_SUFFIXES = (".json", ".txt", ".jinja")
_REVISION = "main"
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub, and which of its GGUF files if `quant` is not None."""

    repo: str
    quant: str | None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Return what `OWNER/NAME[:QUANT]` names, or None if it is not of that form."""
        repo, colon, quant = text.partition(":")
        if not _REPO.fullmatch(repo) or ".." in repo or (colon and not quant):
            return None
        return cls(repo, quant or None)

    @property
    def name(self) -> str:
        """Return the name as a user writes it."""
        return self.repo if self.quant is None else f"{self.repo}:{self.quant}"


class CachedRepo:
    """A repository's folder in the cache of `huggingface_hub`."""

    def __init__(self, repo: str) -> None:
        cache = Path(constants.HF_HUB_CACHE)
        self.folder = cache / f"models--{repo.replace('/', '--')}"
        self._locks = cache / ".locks" / self.folder.name

    def snapshot(self) -> Path | None:
        """Return the folder of the files of the newest commit that is known here, if any."""
        try:
            commit = (self.folder / "refs" / _REVISION).read_text().strip()
        except OSError:
            return None
        folder = self.folder / "snapshots" / commit
        return folder if commit and folder.is_dir() else None

    def blob(self, digest: str) -> Path:
        """Return where the bytes of a file are."""
        return self.folder / "blobs" / digest

    def lock(self, digest: str) -> Path:
        """Return the lock of those who download a file."""
        return self._locks / f"{digest}.lock"

    def link(self, commit: str, file: RemoteFile) -> None:
        """Let a file of a commit be the bytes that are there under the file's digest."""
        pointer = self.folder / "snapshots" / commit / file.name
        if pointer.exists():
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        blob = self.blob(file.digest)
        beside = pointer.with_name(f".{pointer.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # Windows without the right to do so
            os.link(blob, beside)
        os.replace(beside, pointer)

    def record(self, commit: str) -> None:
        """Make a commit the newest."""
        ref = self.folder / "refs" / _REVISION
        ref.parent.mkdir(parents=True, exist_ok=True)
        beside = ref.with_name(f".{_REVISION}.{os.getpid()}")
        beside.write_text(commit)
        os.replace(beside, ref)


def resolve_hub(name: HubName) -> Path:
    """Return a model's folder or the first part of its GGUF file, from the cache or downloaded.

    Raises `ModelSourceError` and `OSError`.
    """
    return cached_model(name) or pull_hub(name)


def cached_model(name: HubName) -> Path | None:
    """Return a model's folder or GGUF file if the cache has all of it.

    Without a QUANT that is the folder of safetensors, or else the best GGUF file in the cache.
    """
    snapshot = CachedRepo(name.repo).snapshot()
    if snapshot is None:
        return None
    if name.quant is None and _is_whole(snapshot):
        return snapshot
    try:
        return snapshot / choose_gguf(name.repo, files_of(snapshot), name.quant)[0]
    except ModelSourceError:
        return None


def cached_models() -> dict[str, Path]:
    """Return the folder or GGUF file of each model in the cache, by its name."""
    found = {}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = CachedRepo(repo).snapshot()
        if snapshot is None:
            continue
        if _is_whole(snapshot) and _is_decoder(snapshot):
            found[repo] = snapshot
        models = gguf_models(files_of(snapshot))
        labels = [quant_label(stem) for stem in models]
        for label, files in zip(labels, models.values(), strict=True):
            named = label if label and labels.count(label) == 1 else files[0]
            found[f"{repo}:{named}"] = snapshot / files[0]
    return found


def files_of(snapshot: Path) -> list[str]:
    """Return the names of all files of a snapshot that are whole."""
    paths = (path for path in snapshot.rglob("*") if path.is_file())
    return sorted(path.relative_to(snapshot).as_posix() for path in paths)


def pull_hub(name: HubName) -> Path:
    """Download what the cache lacks of the newest commit, and return the folder or GGUF file.

    Raises `ModelSourceError` and `OSError`.
    """
    repo = CachedRepo(name.repo)
    with hub_errors(name.repo):
        commit, files = _listing(name.repo)
        wanted = _wanted(name, list(files), lambda file: _text(repo, files[file]))
        _fetch(name, repo, commit, [files[file] for file in wanted])
    repo.record(commit)  # last, so that a model that was whole stays in use until this one is
    folder = repo.folder / "snapshots" / commit
    return folder / wanted[0] if wanted[0].lower().endswith(".gguf") else folder


def _listing(repo: str) -> tuple[str, dict[str, RemoteFile]]:
    """Return the newest commit of a repository and its files by name."""
    info = HfApi(library_name="trimtab").model_info(
        repo, revision=_REVISION, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True
    )
    commit = str(info.sha)
    if not _DIGEST.fullmatch(commit):
        raise ModelSourceError(f"the hub says that the commit of {repo} is {commit!r}")
    headers = build_hf_headers(library_name="trimtab")
    files = {}
    for sibling in info.siblings or ():
        digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
        size, file = sibling.size, sibling.rfilename
        if size is None or not _DIGEST.fullmatch(digest) or not _stays_inside(file):
            continue
        url = f"{constants.ENDPOINT}/{repo}/resolve/{commit}/{quote(file)}"
        files[file] = RemoteFile(file, url, size, digest, headers)
    return commit, files


def _stays_inside(file: str) -> bool:
    """Return whether a file's name leads to a place below the folder that it is put into."""
    parts = file.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part for part in parts)


def _wanted(name: HubName, files: Sequence[str], read: Callable[[str], str]) -> list[str]:
    """Return the files that make up a model; of a GGUF model the first part is the first.

    `read` returns the text of a file. Raises `ModelSourceError` if there is no such model.
    """
    top = [file for file in files if "/" not in file]
    weights = [] if name.quant is not None else _weights(top, read)
    if not weights:
        if gguf_models(files):
            return choose_gguf(name.repo, files, name.quant)
        pickles = [file for file in top if file.endswith((".bin", ".pth", ".pt"))]
        why = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        which = "no GGUF files" if name.quant is not None else "neither safetensors nor GGUF files"
        raise ModelSourceError(f"{name.repo} holds {which}{why}")
    for file in set(weights) - set(files):
        raise ModelSourceError(f"{name.repo}: {_INDEX} names {file}, which is not there")
    texts = [file for file in top if file.endswith(_TEXT_SUFFIXES) or file == "tokenizer.model"]
    return [*texts, *weights]


def _weights(top: Sequence[str], read: Callable[[str], str]) -> list[str]:
    """Return the safetensors files of a model whose files on the top level are `top`."""
    if "config.json" not in top:
        return []
    if _INDEX in top:
        text = read(_INDEX)
        with suppress(json.JSONDecodeError, KeyError, TypeError, AttributeError):
            return sorted(set(json.loads(text)["weight_map"].values()))
    return [_SINGLE] if _SINGLE in top else []


def _is_whole(snapshot: Path) -> bool:
    """Return whether a folder has a configuration and all its safetensors files."""
    top = [path.name for path in snapshot.iterdir() if path.is_file()]
    weights = _weights(top, lambda file: (snapshot / file).read_text(encoding="utf-8"))
    return bool(weights) and set(weights) <= set(top)


def _is_decoder(folder: Path) -> bool:
    """Return whether a folder's configuration is that of a model that writes text."""
    try:
        classes = json.loads((folder / "config.json").read_bytes())["architectures"]
        return any(str(name).endswith("ForCausalLM") for name in classes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _text(repo: CachedRepo, file: RemoteFile) -> str:
    """Return the text of a small file, downloaded."""
    with TransferProgress(file.name, file.size) as progress:
        download(file, repo.blob(file.digest), repo.lock(file.digest), progress)
    return repo.blob(file.digest).read_text(encoding="utf-8")


def _fetch(name: HubName, repo: CachedRepo, commit: str, files: Sequence[RemoteFile]) -> None:
    """Download the files whose bytes are not there, and link all of them."""
    missing = [file for file in files if not repo.blob(file.digest).exists()]
    parts = [part_path(repo.blob(file.digest)) for file in missing]
    there = sum(part.stat().st_size for part in parts if part.exists())
    total = sum(file.size for file in missing)
    check_room(repo.folder, total - there, name.name)
    with TransferProgress(name.name, total) as progress:
        for file in missing:
            download(file, repo.blob(file.digest), repo.lock(file.digest), progress)
    for file in files:
        repo.link(commit, file)
