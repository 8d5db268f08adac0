"""What was measured of an artefact's variants: `table.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pruners.files import write_json

SCHEMA = 3


@dataclass(frozen=True, slots=True)
class Quality:
    """Teacher-forced quality of a variant against the base on held-out text.

    `kl` in nats per token, `agreement` the share of equal top-1 tokens, `perplexity` per token.
    """

    kl: float
    agreement: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`acc` by summed log-likelihood, `acc_norm` by that per character (None for last words).

    `half_width` is half of the 95 % interval of `acc` (Wilson) over `items` questions; `same` is
    the share of questions answered as the base answers them, right or wrong.
    """

    items: int
    acc: float
    acc_norm: float | None
    half_width: float
    same: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a variant takes, apart from time.

    `parameters` are all that it uses and `kept` their share of the base's; `touched` is the share
    of the base's matrix parameters that one generated token reads, corrections included; `flops`
    those of one token with 1,024 before it; `own` the numbers that are resident for it alone.
    """

    parameters: int
    kept: float
    touched: float
    flops: int
    own: int


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
    kv_quality: dict[int, Quality] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    eviction: dict[str, dict[str, Quality]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Accuracy]] = field(default_factory=dict)
    speed: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, str]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name and renames it."""
        write_json(path, {"schema": SCHEMA, **asdict(self)})


def read_table(value: Mapping[str, Any]) -> Table:
    """From the JSON that `save` wrote. Raises `KeyError`, `TypeError` or `ValueError`."""
    return Table(
        evaluation=dict(value["evaluation"]),
        quality=_each(Quality, value["quality"]),
        kv_quality={int(k): Quality(**q) for k, q in value["kv_quality"].items()},
        cost=_each(Cost, value["cost"]),
        eviction={name: _each(Quality, rows) for name, rows in value["eviction"].items()},
        tasks={name: _each(Accuracy, rows) for name, rows in value["tasks"].items()},
        speed=dict(value["speed"]),
        samples={prompt: dict(answers) for prompt, answers in value["samples"].items()},
    )


def _each(kind: Any, rows: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    return {name: kind(**row) for name, row in rows.items()}
