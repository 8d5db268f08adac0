"""What was measured of an artefact's variants and readers: `table.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from pruners.support.errors import UserError
from pruners.support.files import write_json
from pruners.support.validation import EXACT, Count, Finite, Positive, Share, Size, validate

SCHEMA = 3
_OF_READERS = ("reader_quality", "reader_cost", "reading_tasks")
"""Parts that a file may lack: it has them once readers are measured."""


class TableError(UserError):
    """A measurement is no number, such as NaN, or out of range. One line, which names the entry."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Teacher-forced quality of a variant against the base on held-out text.

    `kl` is KL(base || variant) in nats per token, `agreement` the share of equal top-1 tokens,
    `perplexity` exp(mean negative log-likelihood) of the true tokens.
    """

    kl: Finite
    agreement: Share
    perplexity: Positive
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of `items` questions of a task a variant answers rightly.

    `acc` is the share by summed log-likelihood, `acc_norm` by that per character (None for last
    words). `half_width` is half of the 95 % interval of `acc` (Wilson 1927); `same` is the share of
    questions answered as the base answers them, right or wrong.
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

    `parameters` are all that it uses, `parameter_share` of the base's; `bytes_read` is the share of
    the base's matrix parameters that one generated token reads, corrections included; `flops` those
    of one token with 1,024 before it; `correction_parameters` the numbers that are resident for
    this variant alone. In a file three of the fields have other names.
    """

    parameters: Count
    parameter_share: Annotated[Positive, Field(alias="kept")]
    bytes_read: Annotated[Positive, Field(alias="touched")]
    flops: Count
    correction_parameters: Annotated[Count, Field(alias="own")]
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class ReaderQuality:
    """Answers of the base to prompts that a reader has read, against the base's own.

    `kl` is KL(base || base after the reader) in nats per answer token, the mean over `prompts`
    prompts, `half_width` half of its 95 % interval over prompts, `agreement` the share of answer
    tokens whose top-1 prediction is the base's.
    """

    kl: Finite
    half_width: Annotated[Finite, Field(ge=0)]
    agreement: Share
    prompts: Size
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class ReaderCost:
    """What a reader takes, apart from time.

    `share` is the share of the base's multiply-adds for reading the prompts of `reader_quality`,
    `parameters` the numbers of its maps, `bytes` what they take as stored (4 bits a number, a
    scale and a minimum for 32 of them). Readers of one depth have one set of maps.
    """

    share: Positive
    parameters: Count
    bytes: Count
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class Table:
    """Everything that was measured.

    `evaluation` says on what text. `quality` and `cost` are by variant, `kv_quality` by KV budget
    in tokens, `eviction` by KV scorer and the share of a prompt that its budget keeps, `tasks` by
    task and variant, `speed` by device (seconds), `samples` by prompt and variant (greedy answers).
    The last four are empty until `trimtab evaluate` fills them. `cost`, `tasks`, `speed` and
    `samples` hold the base too.

    `reader_quality` is by reader and by the prompt's length in tokens, as `256-1024` (256 up to but
    not 1,024) and `all`; `reader_cost` by reader; `reading_tasks` by task, such as `passkey-1000`,
    and by what reads the prompt or answers: `base`, a reader or a variant. `trimtab evaluate` fills
    them. They are left out of the file while they are empty.
    """

    evaluation: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Quality] = field(default_factory=dict)
    kv_quality: dict[Size, Quality] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    eviction: dict[str, dict[str, Quality]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    speed: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, str]] = field(default_factory=dict)
    reader_quality: dict[str, dict[str, ReaderQuality]] = field(default_factory=dict)
    reader_cost: dict[str, ReaderCost] = field(default_factory=dict)
    reading_tasks: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    __pydantic_config__ = EXACT

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it.

        Raises `TableError` for what `read_table` would refuse.
        """
        value = TypeAdapter(Table).dump_python(self, by_alias=True, warnings=False)
        _checked(value)
        kept = {name: part for name, part in value.items() if part or name not in _OF_READERS}
        write_json(path, {"schema": SCHEMA, **kept})


def read_table(value: Mapping[str, Any]) -> Table:
    """Return the table from the JSON that `save` wrote.

    Raises `TableError`, which names the entry.
    """
    missing = [one.name for one in fields(Table) if one.name not in {*value, *_OF_READERS}]
    if missing:
        raise TableError(f"{missing[0]} is missing")
    return _checked({name: part for name, part in value.items() if name != "schema"})


def _checked(value: Mapping[str, Any]) -> Table:
    try:
        return validate(Table, value)
    except ValueError as error:
        raise TableError(str(error)) from error
