"""Policies by the names that settings and commands give them."""

from collections.abc import Sequence
from pathlib import Path

from policies import ExploringPolicy, Policy, RulePolicy, StaticPolicy
from policies.bundle import load_policy
from server.settings import SettingsError


def named_policy(
    name: str, variants: Sequence[str], fingerprint: str | None, force: bool
) -> Policy:
    """`rule`, `random`, `static:VARIANT`, `refusing:VARIANT` or a folder by `train-policy`.

    One that was not promoted is only loaded with `force`. Raises `SettingsError` or `PolicyError`.
    """
    if name == "rule":
        return RulePolicy()
    if name == "random":
        return ExploringPolicy(RulePolicy(), 1.0)
    kind, _, variant = name.partition(":")
    if kind in ("static", "refusing") and variant in variants:
        return StaticPolicy(variant, refuses=kind == "refusing")
    if Path(name).is_dir():
        return load_policy(Path(name), fingerprint, variants, force)
    known = ["rule", "random", *(f"static:{one}" for one in variants)]
    known += ["refusing: instead of static:", "a folder by train-policy"]
    raise SettingsError(f"no policy '{name}'; there are: {', '.join(known)}")
