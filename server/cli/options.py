"""What the commands share: kinds of options, reading their values, and errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pruners.support.errors import UserError
from server.engine.loading.source import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from pruners.builder.recipe import ReaderPlan

_TEXT = "a text, .jsonl or .csv file, or hf:NAME[:SPLIT[:COLUMN]] for a Hugging Face data set"


MODEL_HELP = (
    "The model: OWNER/NAME[:QUANT] of the Hugging Face hub, ollama:NAME[:TAG], a folder, a GGUF "
    f"file, or the name of the default model, {DEFAULT_MODEL}."
)
TEXT_HELP = f"It is {_TEXT}."
PROMPTS_HELP = f"Prompts: {_TEXT}."

Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ArtefactFolder = Annotated[Path, typer.Option(help="Folder with the variants, by `trimtab build`.")]
OptionalArtefactFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the variants, by `trimtab build`. Without: the one that comes with the "
        "package, if it was built for this model."
    ),
]
Analyzer = Annotated[
    Literal["patterns", "nltk", "spacy"],
    typer.Option(help="What analyzes prompts; it should be what the server uses."),
]
Readers = Annotated[
    str | None,
    typer.Option(
        help="How prompts may be read: the layers that a token runs through, or below 1 their "
        "share; `+numbers` reads numbers and the tokens before them in full. Without: "
        "0.6,0.3+numbers,0.3."
    ),
]
ReaderTokens = Annotated[
    int | None, typer.Option(min=256, help="Tokens to fit readers on. Without: 32768.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]


class UsageError(UserError):
    """The user asked for something that cannot be done. The message is one line."""


def parse_names(text: str | None) -> tuple[str, ...]:
    """Return the names in a list such as `a,b`; None is no name."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_shares(text: str) -> tuple[float, ...]:
    """Return the numbers in a list such as `0.9,0.7`. Raises `UsageError`."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--shares {text} is no list of shares such as 0.9,0.7") from error


def parse_lengths(text: str) -> tuple[int, ...]:
    """Return the numbers in a list such as `200,1000`. Raises `UsageError`."""
    try:
        lengths = tuple(int(part) for part in parse_names(text))
    except ValueError:
        lengths = (0,)
    if not all(100 <= length <= 100_000 for length in lengths):
        raise UsageError(f"--reading-lengths {text} is no list of lengths of 100 and more tokens")
    return lengths


def parse_readers(text: str) -> "tuple[ReaderPlan, ...]":
    """Return the readers in a list such as `20,10+numbers`. Raises `UsageError`."""
    from pruners.builder.recipe import ReaderPlan

    found = []
    for part in parse_names(text):
        depth, plus, kind = part.partition("+")
        try:
            if plus and kind != "numbers":
                raise ValueError
            found.append(ReaderPlan(float(depth), numbers=bool(plus)))
        except ValueError as error:
            raise UsageError(
                f"--readers {text} is no list of layers such as 20,10+numbers"
            ) from error
    return tuple(found)


def parse_device(name: str) -> "torch.device":
    """Return PyTorch's device of this name. Raises `UsageError` if it cannot be used."""
    import torch

    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used: {reason}") from error
