"""The policies that a setting or a command can name."""

from collections.abc import Sequence
from pathlib import Path

from policies import ExploringPolicy, Policy, RulePolicy, StaticPolicy
from policies.bundle import PolicyError, load_policy
from pruners.variant import BASE


class UnknownPolicyError(PolicyError):
    """There is no policy of this name, and no folder. The message lists the names that exist."""


def is_trained(name: str) -> bool:
    """Return whether `name` stands for a folder that `train-policy` wrote."""
    kind = name.partition(":")[0]
    return kind not in ("rule", "random", "static", "refusing") and Path(name).is_dir()


def named_policy(
    name: str, variants: Sequence[str], fingerprint: str | None, force: bool
) -> Policy:
    """Return the policy that `name` stands for.

    Names are `rule`, `random`, `static:VARIANT`, `refusing:VARIANT` and the path of a folder that
    `train-policy` wrote. `variants` are all choices of the server: a variant may have a reader, as
    in `static:base+read-70`. `fingerprint` is that of the model, if it is known. With `force` a
    trained policy is loaded even if it was not promoted. Raises `UnknownPolicyError` or
    `PolicyError`.
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
    shown = [choice for choice in variants if "+" not in choice or choice.startswith(f"{BASE}+")]
    known = ["rule", "random", *(f"static:{choice}" for choice in shown)]
    known += ["refusing: instead of static:", "a folder by train-policy"]
    raise UnknownPolicyError(f"no policy '{name}'; there are: {', '.join(known)}")
