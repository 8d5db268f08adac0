"""Validation of JSON values as dataclasses: every entry of its declared type and range."""

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

EXACT = ConfigDict(extra="forbid")
"""The `__pydantic_config__` of a dataclass that is read from a file: unknown fields are refused."""
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Size: TypeAlias = Annotated[int, Field(ge=1)]

T = TypeVar("T")


def validate(kind: type[T], value: object) -> T:
    """Return a JSON value as an instance of `kind`, such as a dataclass.

    Types are not converted: neither a string nor a boolean is accepted as a number. Raises
    `ValueError` with the path of the first wrong entry.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ValueError(" ".join(f"{place}: {first['msg']}".split())) from error
    return found


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401
    return TypeAdapter(kind)
