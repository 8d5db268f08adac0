"""What all JSON objects of requests have in common."""

from pydantic import BaseModel, ConfigDict, model_validator

_EXACT = 2**53  # whole numbers up to here have a float of their own


class RequestBody(BaseModel):
    """A JSON object of a request. Strict: no value is taken for one of another type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _take_whole_numbers(cls, fields: object) -> object:
        """Some clients write all numbers with a point: 5.0 is as good as 5."""
        if not isinstance(fields, dict) or not {float, list} & set(map(type, fields.values())):
            return fields
        return {name: _whole(value) for name, value in fields.items()}


def _whole(value: object) -> object:
    """Return a value, or a list's entries, with whole numbers as such."""
    if isinstance(value, list):
        has_any = {float, list} & set(map(type, value))
        return [_whole(entry) for entry in value] if has_any else value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value
