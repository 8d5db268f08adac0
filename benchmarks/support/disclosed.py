"""What a response says of how it was made."""

from collections.abc import Mapping
from typing import Any

from policies import Action
from pruners.reading.reader import FULL


def disclosed_action(trimtab: Mapping[str, Any]) -> Action:
    """Return the action that a response's `trimtab` object names."""
    reader = trimtab.get("read", FULL)
    return Action(trimtab["variant"], trimtab.get("kv_budget"), None if reader == FULL else reader)
