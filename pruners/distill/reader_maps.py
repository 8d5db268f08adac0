"""Trains the maps of one depth by KL(base || reader) on answers to prompts; nothing else changes.

The idea is that of SwiftKV (Qiao et al. 2024, arXiv 2410.03960), with linear maps as all that is
trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.correction import RecoveryError
from pruners.data.rows import TokenBatch, group_by_length, pad_rows
from pruners.distill.loss import kl_divergence, log_probabilities
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.kv.base import SINK_TOKENS
from pruners.reading.maps import KVMaps, features
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by

_BATCH_TOKENS = 1536
_WARM_UP_STEPS = 10
_FINAL_RATE = 0.02  # share of the highest learning rate
_DAMPING = 0.02  # of the mean variance of features, added to each direction before whitening
_PROMPT_END = 16  # tokens of a prompt's end that are learnt from too
_PROMPT_WEIGHT = 0.3  # what one of them counts, beside a token of the answer


@dataclass(frozen=True, slots=True)
class DistilOptions:
    """How maps are trained.

    `epochs` passes over all pairs, `rate` the highest learning rate, `seed` draws orders and
    readers. `numbers` bool `[vocab]` says which tokens readers with `numbers` read in full.
    """

    numbers: Tensor | None = None
    epochs: int = 3
    rate: float = 2e-3
    seed: int = 0


def distil_maps(
    located: LocatedModel,
    maps: KVMaps,
    pairs: Sequence[PromptAnswer],
    readers: Sequence[PromptReader],
    options: DistilOptions,
    progress: Progress | None = None,
) -> KVMaps:
    """Return `maps` trained for `readers` of their depth, one of which is drawn for each batch.

    The maps change by a product of the features whitened over the pairs, so that Adam (Kingma & Ba
    2014, arXiv 1412.6980) moves all directions alike; rows keep their scales. The base's weights
    get no gradient. Raises `RecoveryError` without pairs, readers or an answer, or for a reader of
    another depth.
    """
    _check(maps, pairs, readers)
    trained = _TrainedMaps(maps, _second_moment(located, maps.depth, pairs))
    optimizer = torch.optim.Adam(trained.parameters(), lr=options.rate, betas=(0.9, 0.98))
    plan = list(_draw(pairs, readers, options))
    task = None if progress is None else progress.add_task("Distilling maps", total=len(plan))
    with _frozen(located.model):
        for step, (group, reader) in enumerate(plan):
            loss = _loss(located, trained.maps(), reader, group, options.numbers)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = options.rate * _rate_factor(step, len(plan))
            optimizer.step()
            if progress is not None and task is not None:
                progress.update(task, advance=1, description=f"Distilling maps, KL {loss:.3f}")
    with torch.no_grad():
        return trained.maps()


class _TrainedMaps(nn.Module):
    """weight = start + scale * change @ whitening, with `change` trained from zero.

    `scale` is the root mean square of each row of `start` as it acts on whitened features.
    """

    start: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(self, maps: KVMaps, moment: Tensor) -> None:
        super().__init__()
        self._depth = maps.depth
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp(min=0) + _DAMPING * values.mean()
        whitening = vectors @ (values.rsqrt()[:, None] * vectors.T)
        inverse = vectors @ (values.sqrt()[:, None] * vectors.T)
        device = maps.weight.device
        acting = maps.weight.double() @ inverse.to(device)
        self.register_buffer("start", maps.weight)
        self.register_buffer("scale", acting.square().mean(-1, keepdim=True).sqrt().float())
        self.register_buffer("whitening", whitening.float().to(device))
        self.change = nn.Parameter(torch.zeros_like(maps.weight))

    def maps(self) -> KVMaps:
        """Return the maps as they are now, with their gradient."""
        return KVMaps(self._depth, self.start + (self.scale * self.change) @ self.whitening)


def _check(maps: KVMaps, pairs: Sequence[PromptAnswer], readers: Sequence[PromptReader]) -> None:
    if not pairs or not readers:
        raise RecoveryError("maps are distilled on answered prompts, for readers; give some")
    for reader in readers:
        if reader.depth != maps.depth:
            raise RecoveryError(
                f"reader {reader.name} has depth {reader.depth}, the maps are of {maps.depth}"
            )
    for number, pair in enumerate(pairs):
        if not len(pair.prompt) or not len(pair.answer):
            raise RecoveryError(f"pair {number} lacks its prompt or its answer")


def _draw(
    pairs: Sequence[PromptAnswer], readers: Sequence[PromptReader], options: DistilOptions
) -> Iterator[tuple[list[PromptAnswer], PromptReader]]:
    """Yield the batches of all epochs, in a drawn order, each with its drawn reader."""
    generator = torch.Generator().manual_seed(options.seed)
    groups = list(group_by_length([len(_row(pair)) for pair in pairs], _BATCH_TOKENS))
    for _ in range(options.epochs):
        for index in torch.randperm(len(groups), generator=generator).tolist():
            reader = int(torch.randint(len(readers), (1,), generator=generator))
            yield [pairs[pair] for pair in groups[index]], readers[reader]


def _row(pair: PromptAnswer) -> Tensor:
    return torch.cat([pair.prompt, pair.answer])


def _rate_factor(step: int, steps: int) -> float:
    """Return the learning rate of a step over the highest one: linear up, then linear down."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * max(_FINAL_RATE, 1 - step / steps)


@torch.no_grad()
def _second_moment(located: LocatedModel, depth: int, pairs: Sequence[PromptAnswer]) -> Tensor:
    """Return E[x x^T] of the features of all prompt tokens but the first ones, fp64, on the CPU."""
    size = located.shape.hidden + 1
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    for group in group_by_length([len(pair.prompt) for pair in pairs], _BATCH_TOKENS):
        batch = pad_rows([pairs[index].prompt for index in group])
        used = batch.valid.clone()
        used[:, :SINK_TOKENS] = False
        found: list[Tensor] = []
        hook = located.layers[depth].module.register_forward_pre_hook(
            lambda module, args, found=found: found.append(args[0])
        )
        try:
            final_hidden(located, batch)
        finally:
            hook.remove()
        x = features(found[0][used.to(found[0].device)])
        total += (x.T @ x).double().cpu()
        count += len(x)
    return total / max(1, count)


def _loss(
    located: LocatedModel,
    maps: KVMaps,
    reader: PromptReader,
    group: Sequence[PromptAnswer],
    numbers: Tensor | None,
) -> Tensor:
    """Return the mean KL(base || reader), a scalar with a gradient for `maps`."""
    batch = pad_rows([_row(pair) for pair in group])
    prompts = torch.tensor([len(pair.prompt) for pair in group])
    scored, weights = _scored(batch, prompts)
    with torch.no_grad():
        hidden = final_hidden(located, batch)
        base = log_probabilities(located.head, hidden[scored.to(hidden.device)])
    with read_by(located, reader, maps, prompts, batch.tokens, numbers):
        read = final_hidden(located, batch)
    return kl_divergence(located.head, read[scored.to(read.device)], base, weights.to(read.device))


def _scored(batch: TokenBatch, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return which positions are learnt from, bool `[rows, length]`, and their weights."""
    places = torch.arange(batch.tokens.shape[1])
    answer = places >= prompts[:, None] - 1
    scored = batch.scored_positions() & (places >= prompts[:, None] - _PROMPT_END)
    weights = torch.where(answer, 1.0, _PROMPT_WEIGHT)[scored]
    return scored, weights / weights.mean()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter of the model ask for a gradient, while open."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
