"""A trained policy on disk: `policy.json`, bound to its model and its actions."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.rule import RulePolicy, RuleSettings

SCHEMA = 1


class PolicyError(ValueError):
    """The policy is missing, damaged, or was trained for something else. One clear line."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The rule policy's trained settings, what they were trained on and how they did."""

    fingerprint: str
    actions: str
    settings: RuleSettings
    promoted: bool
    report: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Writes `policy.json` under a temporary name and renames it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "policy.json"
        staging = folder / f".policy-{os.getpid()}.json"
        body = {
            "schema": SCHEMA,
            "kind": "rule",
            "model_fingerprint": self.fingerprint,
            "actions_hash": self.actions,
            "promoted": self.promoted,
            "settings": asdict(self.settings),
            "report": self.report,
        }
        staging.write_text(json.dumps(body, indent=1) + "\n")
        os.replace(staging, path)
        return path


def actions_hash(names: Sequence[str]) -> str:
    """Identity of an action catalogue."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def load_policy(folder: Path, fingerprint: str, actions: str) -> RulePolicy:
    """The policy of a folder. Raises `PolicyError` if it does not belong here."""
    path = folder / "policy.json"
    try:
        body = json.loads(path.read_text())
        settings = RuleSettings(**body["settings"])
        found = (body["schema"], body["kind"], body["model_fingerprint"], body["actions_hash"])
        promoted = bool(body["promoted"])
    except OSError as error:
        raise PolicyError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{path} is damaged: {error!r}") from error
    if found[:2] != (SCHEMA, "rule"):
        raise PolicyError(f"{path} is of another version; train it again with `train-policy`")
    if found[2] != fingerprint:
        raise PolicyError(f"{path} was trained for another model ({found[2]})")
    if found[3] != actions:
        raise PolicyError(f"{path} was trained for other variants or KV budgets; train it again")
    if not promoted:
        raise PolicyError(f"{path} did not beat the default policy when it was trained")
    return RulePolicy(settings)
