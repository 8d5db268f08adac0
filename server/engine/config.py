"""What a model and an engine are set up with, whoever asks: the server or an offline job.

Nothing here reads environment variables. Importing this module does not import PyTorch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pruners.support.errors import UserError
from server.engine.loading.source import DEFAULT_MODEL
from server.engine.precision import Precision

DEFAULT_KV_BUDGETS = (1024, 512, 256)
"""KV budgets, in tokens, that a server offers unless its settings say otherwise."""


class EngineConfigError(UserError):
    """The model or the engine cannot be set up as configured. The message is one line."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model to load, and how.

    `model` is a name in one of the forms of `docs/models.md`. `artefact` is a folder that `trimtab
    build` wrote; None stands for the one that comes with the package, if there is one. `context`
    limits prompt and answer together, in tokens; None stands for the model's own maximum. `threads`
    is the number of processor threads; None leaves PyTorch's. Without `readers` those of the
    artefact are left out.
    """

    model: str = DEFAULT_MODEL
    artefact: Path | None = None
    weights: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    context: int | None = None
    threads: int | None = None
    readers: bool = True


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine batches requests, and what cache it has.

    `max_running` sequences share a step of at most `step_tokens` tokens. The KV cache holds
    `kv_tokens` tokens; None stands for as many as fit into the memory that it may take. `kv_cache`
    is the type of its numbers: `int8`, `weights` for that of the weights, or `auto` for `int8` if
    there is little memory and else that of the weights. `speculate` allows guessing tokens ahead,
    which are then verified.
    """

    max_running: int = 16
    step_tokens: int = 256
    kv_tokens: int | None = None
    kv_cache: Literal["auto", "weights", "int8"] = "auto"
    speculate: bool = True
