"""A trained policy on disk: `policy.safetensors` and `policy.json`, bound to model and variants."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.learned import Layers, LearnedPolicy
from policies.view import CLIP, choices, feature_names
from pruners.errors import UserError
from pruners.files import replaced, write_json

SCHEMA = 2
Kind = Literal["dqn", "bandit"]
_TEXT, _NUMBERS = "policy.json", "policy.safetensors"


class PolicyError(UserError):
    """The policy is missing, damaged, or was trained for something else. One clear line."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A network, what it was trained for and on, and how it did.

    `fingerprint` is the model's, `report` the evidence and whether it was `promoted`.
    """

    kind: Kind
    fingerprint: str
    variants: tuple[str, ...]
    layers: Layers
    promoted: bool
    report: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Writes both files under temporary names and renames them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, np.ndarray] = {}
        for number, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
        body = {
            "schema": SCHEMA,
            "kind": self.kind,
            "features": feature_names(self.variants),
            "clip": CLIP,
            "choices": choices(self.variants),
            "choices_hash": actions_hash(choices(self.variants)),
            "model_fingerprint": self.fingerprint,
            "promoted": self.promoted,
            "report": self.report,
        }
        replaced(folder / _NUMBERS, lambda path: save_file(tensors, path))
        return write_json(folder / _TEXT, body)


def actions_hash(names: Sequence[str]) -> str:
    """Identity of an action catalogue."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def load_policy(
    folder: Path, fingerprint: str | None, variants: Sequence[str], force: bool = False
) -> LearnedPolicy:
    """The policy of a folder. Raises `PolicyError` if it does not belong here.

    One that was not promoted is only loaded with `force`; None is any model's fingerprint.
    """
    path = folder / _TEXT
    try:
        body = json.loads(path.read_text())
        tensors = load_file(folder / _NUMBERS)
    except OSError as error:
        raise PolicyError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    except (ValueError, SafetensorError) as error:
        raise PolicyError(f"{folder} is damaged: {error}") from error
    try:
        if body["schema"] != SCHEMA:
            raise PolicyError(f"{path} is of another version; train it again with `train-policy`")
        if fingerprint not in (None, body["model_fingerprint"]):
            found = body["model_fingerprint"]
            raise PolicyError(f"{path} was trained for another model ({found})")
        same = body["choices"] == list(choices(variants)) and body["clip"] == CLIP
        if not same or body["features"] != list(feature_names(variants)):
            raise PolicyError(f"{path} was trained for other variants; train it again")
        layers = _layers(tensors, len(body["features"]), len(body["choices"]))
        promoted, kind = bool(body["promoted"]), str(body["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{folder} is damaged: {error!r}") from error
    if not (promoted or force):
        raise PolicyError(f"{path} did not beat the rule when it was trained; --force serves it")
    return LearnedPolicy(kind, variants, layers)


def _layers(tensors: dict[str, np.ndarray], inputs: int, outputs: int) -> Layers:
    """In order, if they fit each other. Raises `KeyError` or `ValueError`."""
    found = []
    for number in range(len(tensors) // 2):
        weight, bias = tensors[f"{number}.weight"], tensors[f"{number}.bias"]
        if weight.ndim != 2 or weight.shape != (len(bias), inputs):
            raise ValueError(f"layer {number} does not fit")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {number} has numbers that are none")
        found.append((weight, bias))
        inputs = len(bias)
    if not found or inputs != outputs:
        raise ValueError("its layers do not end in its choices")
    return tuple(found)
