"""The ways to answer a request that are compared: how its prompt is read, and what writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.reading.examples import Example
from benchmarks.reading.work import RequestWork, request_work, whole_work
from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.reading.drop import TokenDropping, drop_tokens
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.realization.mask import apply_mask
from pruners.realization.variant_set import VariantSet
from pruners.variant import BASE, VariantSpec, base_spec

READER, VARIANT, DROPPING, TRUNCATION = "reader", "variant", "dropping", "truncation"
"""The kinds of ways besides the base."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a way did with a request.

    `hidden` `[answer, hidden]` are the inputs of the head that predict each token of the answer.
    """

    hidden: Tensor
    work: RequestWork


class Way(Protocol):
    """One way to answer requests."""

    @property
    def name(self) -> str:
        """Return the way's name."""
        ...

    @property
    def kind(self) -> str:
        """Return what kind of way it is."""
        ...

    def answer(self, example: Example, others: Mapping[str, RequestWork]) -> Answered:
        """Read a request's prompt, and predict its answer token by token (teacher-forced).

        `others` says what ways before this one in the list took for the same request, by name.
        """
        ...


class WholeRequest:
    """The base or a variant reads and writes."""

    def __init__(self, located: LocatedModel, variants: VariantSet, spec: VariantSpec) -> None:
        self.name = spec.name
        self.kind = BASE if spec.name == BASE else VARIANT
        self._located = located
        self._variants = variants
        self._spec = spec

    def answer(self, example: Example, others: Mapping[str, RequestWork]) -> Answered:
        """Run the whole request through the variant."""
        located, spec = self._located, self._spec
        corrections = self._variants.corrections_of(spec)
        with apply_mask(located, spec, self._variants.order, corrections):
            hidden = _predicting(located, example)
        work = whole_work(located.shape, spec, example.length, len(example.answer))
        return Answered(hidden, work)


class ReadByLayers:
    """A reader reads the prompt; the base writes."""

    kind = READER

    def __init__(
        self, located: LocatedModel, reader: PromptReader, maps: KVMaps, kinds: Tensor | None
    ) -> None:
        self.name = reader.name
        self._located = located
        self._reader = reader
        self._maps = maps
        self._kinds = kinds

    def answer(self, example: Example, others: Mapping[str, RequestWork]) -> Answered:
        """Read with the maps of the reader's depth."""
        located, reader = self._located, self._reader
        prompts, tokens = _as_row(example)
        with read_by(located, reader, self._maps, prompts, tokens, self._kinds) as shallow:
            hidden = _predicting(located, example)
        runs = _all_layers(located, example)
        runs[reader.depth :] = ~shallow()[0, : example.length]
        visible = torch.ones_like(runs)
        return Answered(hidden, _work(located, runs, visible, example))


class ReadByDropping:
    """The base drops prompt tokens between two layers, for good."""

    kind = DROPPING

    def __init__(self, located: LocatedModel, dropping: TokenDropping) -> None:
        self.name = dropping.name
        self._located = located
        self._dropping = dropping

    def answer(self, example: Example, others: Mapping[str, RequestWork]) -> Answered:
        """Read with fewer tokens from the dropping's depth on."""
        located, dropping = self._located, self._dropping
        with drop_tokens(located, dropping, *_as_row(example)) as dropped:
            hidden = _predicting(located, example)
        runs = _all_layers(located, example)
        runs[dropping.depth :] = ~dropped()[0, : example.length]
        return Answered(hidden, _work(located, runs, runs, example))


class Truncation:
    """The base reads the prompt without the oldest part of its context.

    As many tokens are left as do not make the whole request cost more than with the way `like`.
    """

    kind = TRUNCATION

    def __init__(self, located: LocatedModel, like: str) -> None:
        self.name = f"cut as {like}"
        self._located = located
        self._like = like

    def answer(self, example: Example, others: Mapping[str, RequestWork]) -> Answered:
        """Truncate the prompt and run the rest through the base."""
        located, spec = self._located, base_spec(self._located.shape)
        around = example.length - len(example.context)

        def work(tokens: int) -> RequestWork:
            return whole_work(located.shape, spec, around + tokens, len(example.answer))

        low, high = 0, len(example.context)  # the most tokens that cost no more lie within
        while low < high:
            middle = (low + high + 1) // 2
            fits = work(middle).total <= others[self._like].total
            low, high = (middle, high) if fits else (low, middle - 1)
        return Answered(_predicting(located, example.truncated(low)), work(low))


def compared_ways(
    located: LocatedModel,
    variants: VariantSet,
    readers: Sequence[PromptReader],
    maps: Mapping[int, KVMaps],
    kinds: Tensor | None,
) -> list[Way]:
    """Return the base, all variants, all readers, droppings, and truncations as cheap as readers.

    Tokens are dropped after a third and half of the layers. `kinds`, int8 `[vocab]`, are those of
    tokens.
    """
    layers = located.shape.layers
    base = base_spec(located.shape)
    return [
        *(WholeRequest(located, variants, spec) for spec in (base, *variants.specs)),
        *(ReadByLayers(located, reader, maps[reader.depth], kinds) for reader in readers),
        *(
            ReadByDropping(located, TokenDropping(f"keep {keep:.0%} after {depth}", depth, keep))
            for depth, keep in ((layers // 3, 0.5), (layers // 3, 0.25), (layers // 2, 0.5))
        ),
        *(Truncation(located, reader.name) for reader in readers),
    ]


def _as_row(example: Example) -> tuple[Tensor, Tensor]:
    """Return the number of prompt tokens `[1]` and all tokens `[1, length]`."""
    return torch.tensor([example.length]), torch.tensor([example.tokens])


def _predicting(located: LocatedModel, example: Example) -> Tensor:
    """Return the inputs of the head from which the answer's tokens are predicted."""
    hidden = final_hidden(located, pad_rows([torch.tensor(example.tokens)]))[0]
    return hidden[example.length - 1 : -1]


def _all_layers(located: LocatedModel, example: Example) -> Tensor:
    return torch.ones(located.shape.layers, example.length, dtype=torch.bool)


def _work(located: LocatedModel, runs: Tensor, visible: Tensor, example: Example) -> RequestWork:
    spec = base_spec(located.shape)
    return request_work(located.shape, spec, runs, visible, len(example.answer))
