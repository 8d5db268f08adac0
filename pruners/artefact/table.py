"""What was measured of an artefact's variants: `table.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pruners.support.errors import UserError
from pruners.support.files import write_json
from pruners.support.validation import EXACT, Count, Finite, Positive, Share, Size, validate

SCHEMA = 3


class TableError(UserError):
    """Measurements that are none, such as NaN. One clear line, which names the entry."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Teacher-forced quality of a variant against the base on held-out text.

    `kl` in nats per token, `agreement` the share of equal top-1 tokens, `perplexity` per token.
    """

    kl: Finite
    agreement: Share
    perplexity: Positive
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`acc` by summed log-likelihood, `acc_norm` by that per character (None for last words).

    `half_width` is half of the 95 % interval of `acc` (Wilson) over `items` questions; `same` is
    the share of questions answered as the base answers them, right or wrong.
    """

    items: Size
    acc: Share
    acc_norm: Share | None
    half_width: Finite
    same: Share
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class Cost:
    """What a variant takes, apart from time.

    `parameters` are all that it uses and `kept` their share of the base's; `touched` is the share
    of the base's matrix parameters that one generated token reads, corrections included; `flops`
    those of one token with 1,024 before it; `own` the numbers that are resident for it alone.
    """

    parameters: Count
    kept: Positive
    touched: Positive
    flops: Count
    own: Count
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class Table:
    """Everything measured, by variant or by KV budget in tokens.

    `evaluation` says on what text. `eviction` holds the quality of each scorer by the share of a
    prompt that its budget keeps, `tasks` accuracies by task, `speed` the times by device, `samples`
    greedy answers by prompt; all are empty until `trimtab evaluate` fills them. `cost`, `tasks`,
    `speed` and `samples` know the base too.
    """

    evaluation: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Quality] = field(default_factory=dict)
    kv_quality: dict[Size, Quality] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    eviction: dict[str, dict[str, Quality]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    speed: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, str]] = field(default_factory=dict)
    __pydantic_config__ = EXACT

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name and renames it.

        Raises `TableError` for what `read_table` would refuse.
        """
        value = asdict(self)
        _table(value)
        write_json(path, {"schema": SCHEMA, **value})


def read_table(value: Mapping[str, Any]) -> Table:
    """From the JSON that `save` wrote. Raises `TableError`, which names the entry."""
    missing = [one.name for one in fields(Table) if one.name not in value]
    if missing:
        raise TableError(f"{missing[0]} is missing")
    return _table({name: part for name, part in value.items() if name != "schema"})


def _table(value: Mapping[str, Any]) -> Table:
    try:
        return validate(Table, value)
    except ValueError as error:
        raise TableError(str(error)) from error
