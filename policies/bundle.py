"""A trained policy on disk: `policy.safetensors` and `policy.json`, bound to model and variants."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.features import CLIP, REFUSE, choices, feature_names
from policies.learned import LearnedPolicy, NetworkLayers
from pruners.support.errors import UserError
from pruners.support.files import file_hash, replace_file, write_json

SCHEMA = 3
PolicyKind = Literal["dqn", "bandit"]
TEXT, _NUMBERS = "policy.json", "policy.safetensors"
_FIELDS: dict[str, type] = {
    "kind": str, "features": list, "clip": float, "choices": list, "model_fingerprint": str,
    "weights_sha256": str, "promoted": bool, "training": dict, "report": dict,
}  # fmt: skip


class PolicyError(UserError):
    """The policy is missing, damaged, or was trained for something else. One clear line."""


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A network, what it was trained for and on, and how it did.

    `fingerprint` is the model's, `training` what it was trained with, as `train-policy` notes it,
    `report` the evidence and whether it was `promoted`.
    """

    kind: PolicyKind
    fingerprint: str
    variants: tuple[str, ...]
    layers: NetworkLayers
    promoted: bool
    training: dict[str, Any]
    report: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Writes both files under temporary names and renames them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, np.ndarray] = {}
        for number, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
        replace_file(folder / _NUMBERS, lambda path: save_file(tensors, path))
        body = {
            "schema": SCHEMA,
            "kind": self.kind,
            "features": feature_names(self.variants),
            "clip": CLIP,
            "choices": choices(self.variants),
            "model_fingerprint": self.fingerprint,
            "weights_sha256": file_hash(folder / _NUMBERS),
            "promoted": self.promoted,
            "training": self.training,
            "report": self.report,
        }
        return write_json(folder / TEXT, body)

    def policy(self) -> LearnedPolicy:
        """The network at work."""
        return LearnedPolicy(self.kind, self.variants, self.layers)


def load_policy(
    folder: Path, fingerprint: str | None, variants: Sequence[str], force: bool = False
) -> LearnedPolicy:
    """The policy of a folder. Raises `PolicyError` if it does not belong here.

    One that was not promoted is only loaded with `force`; None is any model's fingerprint.
    """
    found = load_bundle(folder)
    path = folder / TEXT
    if fingerprint not in (None, found.fingerprint):
        raise PolicyError(f"{path} was trained for another model ({found.fingerprint})")
    if found.variants != tuple(variants):
        raise PolicyError(
            f"{path} was trained for other variants ({', '.join(found.variants)}; here are "
            f"{', '.join(variants)}); train it again"
        )
    if not (found.promoted or force):
        raise PolicyError(f"{path} did not beat the rule when it was trained; --force serves it")
    return found.policy()


def load_bundle(folder: Path) -> PolicyBundle:
    """Everything in a policy's folder. Raises `PolicyError` if it is not whole and sound."""
    path = folder / TEXT
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / _NUMBERS)
        hashed = file_hash(folder / _NUMBERS)
    except OSError as error:
        raise PolicyError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    except (ValueError, SafetensorError) as error:
        raise PolicyError(f"{folder} is damaged: {error}") from error
    if not isinstance(body, dict) or "schema" not in body:
        raise PolicyError(f"{path} is damaged: it is no policy's")
    if body["schema"] != SCHEMA:
        raise PolicyError(f"{path} is of another version; train it again with `train-policy`")
    try:
        _check_fields(body)
        if hashed != body["weights_sha256"]:
            raise ValueError(f"{_NUMBERS} is not the file that {TEXT} was written with")
        return PolicyBundle(
            kind=body["kind"],
            fingerprint=body["model_fingerprint"],
            variants=tuple(body["choices"][:-1]),
            layers=_layers(tensors, len(body["features"]), len(body["choices"])),
            promoted=body["promoted"],
            training=body["training"],
            report=body["report"],
        )
    except ValueError as error:
        raise PolicyError(f"{path} is damaged: {error}; train it again") from error


def _check_fields(body: dict[str, Any]) -> None:
    """Raises `ValueError` for what is missing, of another type, or of another catalogue."""
    for name, kind in _FIELDS.items():
        if name not in body:
            raise ValueError(f"it lacks '{name}'")
        if type(body[name]) is not kind:
            raise ValueError(f"'{name}' is no {kind.__name__}")
    if body["kind"] not in get_args(PolicyKind):
        raise ValueError(f"there is no kind '{body['kind']}'")
    if body["clip"] != CLIP:
        raise ValueError(f"'clip' is {body['clip']}, here features end at {CLIP}")
    names = body["choices"]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("'choices' are no names, or not all different")
    if names[-1:] != [REFUSE] or len(names) < 2:
        raise ValueError(f"'choices' are not variants and '{REFUSE}'")
    if body["features"] != list(feature_names(names[:-1])):
        raise ValueError("'features' are others than this version has for its variants")


def _layers(tensors: dict[str, np.ndarray], inputs: int, outputs: int) -> NetworkLayers:
    """In order, if they fit each other. Raises `ValueError`."""
    count = len(tensors) // 2
    wanted = {f"{number}.{part}" for number in range(count) for part in ("weight", "bias")}
    if not count or tensors.keys() != wanted:
        raise ValueError(f"{_NUMBERS} does not hold a weight and a bias a layer")
    found = []
    for number in range(count):
        weight, bias = tensors[f"{number}.weight"], tensors[f"{number}.bias"]
        if weight.ndim != 2 or bias.ndim != 1 or weight.shape != (len(bias), inputs):
            raise ValueError(f"layer {number} does not fit")
        if weight.dtype != np.float32 or bias.dtype != np.float32:
            raise ValueError(f"layer {number} is not in float32")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {number} has numbers that are none")
        found.append((weight, bias))
        inputs = len(bias)
    if inputs != outputs:
        raise ValueError("its layers do not end in its choices")
    return tuple(found)
