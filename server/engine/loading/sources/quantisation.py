"""Which GGUF file of a repository is meant by `OWNER/NAME:QUANT`, or by no QUANT at all."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from server.engine.loading.sources.errors import ModelSourceError

ORDER = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1"),
    *("Q6_K", "Q8_0", "BF16", "F16", "FP16", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
"""The file that is taken where none is named: 4 bits, else the next larger, else fewer bits."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_LABEL = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|BF16|FP?16|F32)", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


def gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the models among a repository's files: the names of all parts, in order, by stem.

    Files beside a model, such as a projector of images, are left out. So is a split model that
    lacks a part.
    """
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() != ".gguf" or _NO_MODEL.search(path.name):
            continue
        stem = name[: -len(path.suffix)]
        split = _PART.fullmatch(stem)
        number = int(split["number"]) if split else 1
        stem = split["stem"] if split else stem
        counts[stem] = int(split["count"]) if split else 1
        parts.setdefault(stem, {})[number] = name
    return {
        stem: [found[number] for number in sorted(found)]
        for stem, found in sorted(parts.items())
        if sorted(found) == list(range(1, counts[stem] + 1))
    }


def quant_label(stem: str) -> str | None:
    """Return how a model's file name says that it is quantised, such as `Q4_K_M`, if it does."""
    words = re.split(r"[-.]", PurePosixPath(stem).name)
    for index in range(len(words) - 1, -1, -1):
        if _LABEL.fullmatch(words[index]):
            prefix = "UD-" if index and words[index - 1].upper() == "UD" else ""
            return prefix + words[index].upper()
    return None


def choose_gguf(repo: str, names: Iterable[str], quant: str | None) -> list[str]:
    """Return the files of the model that `quant` names, or of the first in `ORDER`.

    `quant` is a label such as `Q4_K_M`, in any case of letters, or the name of a file. Raises
    `ModelSourceError` with what there is, if that is no model or several.
    """
    models = gguf_models(names)
    if quant is not None and quant.lower().endswith(".gguf"):
        found = [files for files in models.values() if _names_one(files, quant)]
    elif quant is not None:
        found = [files for stem, files in models.items() if quant_label(stem) == quant.upper()]
    elif len(models) == 1:
        found = list(models.values())
    else:
        labels = [quant_label(stem) for stem in models]
        best = next((label for label in ORDER if label in labels), None)
        found = [files for stem, files in models.items() if best and quant_label(stem) == best]
    if len(found) == 1:
        return found[0]
    problem = f"has no {quant}" if quant is not None else "has several GGUF files; say which"
    if found:
        problem = f"has several of them; name one as {repo}:FILE.gguf"
    there = ", ".join(quant_label(s) or f"{PurePosixPath(s).name}.gguf" for s in models) or "none"
    if found or len(set(map(quant_label, models))) < len(models):
        there = ", ".join(files[0] for files in models.values())
    raise ModelSourceError(f"{repo} {problem}; there are: {there}")


def _names_one(files: list[str], wanted: str) -> bool:
    return any(wanted in (name, PurePosixPath(name).name) for name in files)
