"""Bounds of bodies that depend on the served model, which schemas name and the document states."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Json = dict[str, Any]
_MARK = "x-limit"
_MAX_NAMED = 1024
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


class Limit(StrEnum):
    """What bounds a value."""

    TOKEN = "token"
    TOKEN_NAMES = "token names"  # keys of an object
    PROMPT = "prompt"  # a list of token ids
    PROMPTS = "prompts"
    CONTEXT = "context"
    ANSWERS = "answers"
    VARIANT = "variant"
    READER = "reader"
    VARIABLES = "variables"
    OR_NULL = "or null"  # no bound: null is as good as the default


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model bounds; `variables` are those of its chat template."""

    context: int
    vocab: int
    answers: int
    variants: tuple[str, ...]
    readers: tuple[str, ...]
    variables: tuple[str, ...]

    def keywords(self) -> dict[str, Json]:
        """Return the JSON schema keywords of each limit."""
        names = {"pattern": f"^(?:{_numbers_below(self.vocab)})$"}
        return {
            Limit.TOKEN: {"maximum": self.vocab - 1},
            Limit.TOKEN_NAMES: {"propertyNames": names, "maxProperties": _MAX_NAMED},
            Limit.PROMPT: {"minItems": 1, "maxItems": self.context},
            Limit.PROMPTS: {"minItems": 1, "maxItems": self.answers},
            Limit.CONTEXT: {"maximum": self.context},
            Limit.ANSWERS: {"maximum": self.answers},
            Limit.VARIANT: {"enum": list(self.variants)},
            Limit.READER: {"enum": list(self.readers)},
            Limit.VARIABLES: {
                "properties": {name: {} for name in self.variables},
                "additionalProperties": False,
            },
        }


def limited_by(limit: Limit) -> Json:
    """Return what marks a schema, for `json_schema_extra`."""
    return {_MARK: limit.value}


def state_limits(schema: Any, keywords: Mapping[str, Json]) -> Any:  # noqa: ANN401
    """Return a schema in which each mark is replaced by the keywords of its limit."""
    if isinstance(schema, list):
        return [state_limits(entry, keywords) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    stated = {key: state_limits(value, keywords) for key, value in schema.items() if key != _MARK}
    for key in _BOUNDS & stated.keys():
        if isinstance(stated[key], float) and stated[key].is_integer():
            stated[key] = int(stated[key])  # FastAPI makes floats of them, which round large ones
    mark = schema.get(_MARK)
    if mark == Limit.OR_NULL:
        return {"anyOf": [stated, {"type": "null"}]}
    return {**stated, **keywords.get(mark, {})} if isinstance(mark, str) else stated


def _numbers_below(count: int) -> str:
    """Return a pattern of the decimal numbers from 0 to `count` - 1, without leading zeros."""
    digits = str(count - 1)
    size = len(digits)
    shorter = ["[0-9]"] if size > 1 else []
    shorter += [f"[1-9][0-9]{{{length - 1}}}" for length in range(2, size)]
    same = []
    for at, digit in enumerate(digits):
        least = 1 if at == 0 and size > 1 else 0
        if int(digit) > least:
            rest = size - at - 1
            same.append(
                f"{digits[:at]}[{least}-{int(digit) - 1}]" + (f"[0-9]{{{rest}}}" if rest else "")
            )
    return "|".join([*shorter, *same, digits])
