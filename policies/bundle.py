"""A trained policy on disk: `policy.safetensors` and `policy.json`, for one model and choices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.features import CLIP, REFUSE, choice_names, feature_names
from policies.learned import LearnedPolicy, NetworkLayers
from pruners.support.errors import UserError
from pruners.support.files import file_hash, replace_file, write_json

SCHEMA = 3
PolicyKind = Literal["dqn", "bandit"]
TEXT, _WEIGHTS = "policy.json", "policy.safetensors"
_FIELDS: dict[str, type] = {
    "kind": str, "features": list, "clip": float, "choices": list, "model_fingerprint": str,
    "weights_sha256": str, "promoted": bool, "training": dict, "report": dict,
}  # fmt: skip


class PolicyError(UserError):
    """A policy that is missing, damaged, or trained for something else. The message is one line."""


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A network, what it was trained for and on, and how it was evaluated.

    `fingerprint` is that of the model, `variants` are what it chooses from but for refusing, in the
    network's order: variants, and those with readers (`base+read-70`). `training` is what
    `train-policy` notes about the training, `report` the evaluation that decided whether the policy
    is `promoted`.
    """

    kind: PolicyKind
    fingerprint: str
    variants: tuple[str, ...]
    layers: NetworkLayers
    promoted: bool
    training: dict[str, Any]
    report: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write both files under temporary names and rename them. Return `policy.json`'s path."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, np.ndarray] = {}
        for number, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
        replace_file(folder / _WEIGHTS, lambda path: save_file(tensors, path))
        body = {
            "schema": SCHEMA,
            "kind": self.kind,
            "features": feature_names(self.variants),
            "clip": CLIP,
            "choices": choice_names(self.variants),
            "model_fingerprint": self.fingerprint,
            "weights_sha256": file_hash(folder / _WEIGHTS),
            "promoted": self.promoted,
            "training": self.training,
            "report": self.report,
        }
        return write_json(folder / TEXT, body)

    def policy(self) -> LearnedPolicy:
        """Return the policy that decides by this network."""
        return LearnedPolicy(self.kind, self.variants, self.layers)


def load_policy(
    folder: Path, fingerprint: str | None, variants: Sequence[str], force: bool = False
) -> LearnedPolicy:
    """Return the policy of a folder, if it was trained for this model and these variants.

    `variants` are all choices of the server. A policy that knows fewer readers, or none, never
    chooses the others. A policy that was not promoted is only loaded with `force`. A `fingerprint`
    of None accepts any model. Raises `PolicyError`.
    """
    bundle = load_bundle(folder)
    path = folder / TEXT
    if fingerprint not in (None, bundle.fingerprint):
        raise PolicyError(f"{path} was trained for another model ({bundle.fingerprint})")
    if _in_full(bundle.variants) != _in_full(variants) or set(bundle.variants) - set(variants):
        raise PolicyError(
            f"{path} was trained for other variants ({', '.join(bundle.variants)}; here are "
            f"{', '.join(variants)}); train it again"
        )
    if not (bundle.promoted or force):
        raise PolicyError(f"{path} did not beat the rule when it was trained; --force serves it")
    return bundle.policy()


def _in_full(choices: Sequence[str]) -> list[str]:
    """Return the choices without a reader."""
    return [choice for choice in choices if "+" not in choice]


def load_bundle(folder: Path) -> PolicyBundle:
    """Return all that a policy's folder holds. Raises `PolicyError` if it is missing or damaged."""
    path = folder / TEXT
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
        hashed = file_hash(folder / _WEIGHTS)
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
            raise ValueError(f"{_WEIGHTS} is not the file that {TEXT} was written with")
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
    """Raise `ValueError` for a field that is missing, of another type, or does not fit the rest."""
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
    """Return the network's layers in order. Raises `ValueError` if their shapes do not fit."""
    count = len(tensors) // 2
    expected = {f"{number}.{part}" for number in range(count) for part in ("weight", "bias")}
    if not count or tensors.keys() != expected:
        raise ValueError(f"{_WEIGHTS} does not hold a weight and a bias a layer")
    layers = []
    for number in range(count):
        weight, bias = tensors[f"{number}.weight"], tensors[f"{number}.bias"]
        if weight.ndim != 2 or bias.ndim != 1 or weight.shape != (len(bias), inputs):
            raise ValueError(f"layer {number} does not fit")
        if weight.dtype != np.float32 or bias.dtype != np.float32:
            raise ValueError(f"layer {number} is not in float32")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {number} has numbers that are none")
        layers.append((weight, bias))
        inputs = len(bias)
    if inputs != outputs:
        raise ValueError("its layers do not end in its choices")
    return tuple(layers)
