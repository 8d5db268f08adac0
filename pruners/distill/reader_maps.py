"""Trains the maps of one depth by KL(base || reader) on answers to prompts; nothing else changes.

The idea is that of SwiftKV (Qiao et al. 2024, arXiv 2410.03960), with linear maps as all that is
trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn

from pruners.architecture import LocatedModel, UnsupportedModelError
from pruners.correction import RecoveryError
from pruners.data.rows import group_by_length, hash_rows, pad_rows
from pruners.distill.loss import kl_divergence, log_probabilities
from pruners.distill.map_training_state import MapTrainingState
from pruners.distill.reading_lessons import Lesson, make_lessons
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.upper_pass import find_full, read_upper

_BATCH_TOKENS = 1536
_WARM_UP_STEPS = 10
_FINAL_RATE = 0.02  # share of the highest learning rate
_DAMPING = 0.02  # of the mean variance of features, added to each direction before whitening
_PROMPT_WEIGHT = 0.3  # what a token of a prompt's end counts, beside one of the answer
_ANSWER_TOKENS = 48  # a shorter answer's tokens count more, by the root of how much shorter it is


@dataclass(frozen=True, slots=True)
class DistilOptions:
    """How maps are trained.

    `epochs` passes over all pairs, `rate` the highest learning rate, `seed` draws orders and
    readers. `kinds` int8 `[vocab]` are those of tokens. From the `state`
    file, an interrupted training of the same steps goes on.
    """

    kinds: Tensor | None = None
    epochs: int = 3
    rate: float = 4e-3
    seed: int = 0
    state: Path | None = None


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
    get no gradient. What the base computes is kept, 8 * hidden bytes or less for each token of the
    pairs, so that a step costs little more than the layers above the depth for the full tokens.
    Raises `RecoveryError` without pairs, readers or an answer, or for a reader of another depth,
    and `UnsupportedModelError` for a family that embeds positions.
    """
    if located.rotary is None:
        raise UnsupportedModelError(f"{located.family} has no rotary positions; it is not served")
    _check(maps, pairs, readers)
    lessons, moment = make_lessons(located, maps.depth, pairs, progress)
    trained = _TrainedMaps(maps, moment)
    optimizer = torch.optim.Adam(trained.parameters(), lr=options.rate, betas=(0.9, 0.98))
    plan = list(_draw([len(one.tokens) for one in lessons], readers, options))
    steps = (options.epochs, options.rate, options.seed, _BATCH_TOKENS)
    pairs_hash = hash_rows([one.tokens for one in lessons])
    state = MapTrainingState(options.state, f"{pairs_hash} {steps} {list(readers)}")
    done = state.read(trained.change, optimizer)
    task = None if progress is None else progress.add_task("Distilling maps", total=len(plan))
    with _frozen(located.model):
        for step, (group, reader) in enumerate(plan[done:], done):
            batch = [lessons[pair] for pair in group]
            loss = _loss(located, trained.maps(), reader, batch, options.kinds)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = options.rate * _rate_factor(step, len(plan))
            optimizer.step()
            state.write_sometimes(step + 1, trained.change, optimizer)
            if progress is not None and task is not None:
                text = f"Distilling maps, KL {loss:.3f}"
                progress.update(task, completed=step + 1, description=text)
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
    lengths: Sequence[int], readers: Sequence[PromptReader], options: DistilOptions
) -> Iterator[tuple[list[int], PromptReader]]:
    """Yield the batches of all epochs, in a drawn order, each with its drawn reader."""
    generator = torch.Generator().manual_seed(options.seed)
    groups = list(group_by_length(lengths, _BATCH_TOKENS))
    for _ in range(options.epochs):
        for index in torch.randperm(len(groups), generator=generator).tolist():
            reader = int(torch.randint(len(readers), (1,), generator=generator))
            yield groups[index], readers[reader]


def _rate_factor(step: int, steps: int) -> float:
    """Return the learning rate of a step over the highest one: linear up, then linear down."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * max(_FINAL_RATE, 1 - step / steps)


def _loss(
    located: LocatedModel,
    maps: KVMaps,
    reader: PromptReader,
    lessons: Sequence[Lesson],
    kinds: Tensor | None,
) -> Tensor:
    """Return the mean KL(base || reader), a scalar with a gradient for `maps`."""
    device = lessons[0].hidden.device
    batch = pad_rows([lesson.tokens for lesson in lessons])
    shallow = torch.zeros_like(batch.valid)
    scored = torch.zeros_like(batch.valid)
    weights = torch.zeros(batch.tokens.shape)
    for row, one in enumerate(lessons):
        last, answer = len(one.tokens) - 1, len(one.tokens) - one.prompt
        shallow[row, : one.prompt] = reader.shallow(one.tokens[: one.prompt], kinds)
        scored[row, one.first : last] = True
        weights[row, one.first : one.prompt - 1] = _PROMPT_WEIGHT
        weights[row, one.prompt - 1 : last] = 1.0
        weights[row] *= (_ANSWER_TOKENS / answer) ** 0.5
    shallow, scored, weights = shallow.to(device), scored.to(device), weights.to(device)
    final = torch.cat([one.final for one in lessons])
    hidden = nn.utils.rnn.pad_sequence([one.hidden for one in lessons], batch_first=True)
    full = find_full(shallow, batch.valid.to(device))
    read = read_upper(located, maps, hidden, shallow, full)
    learnt = scored.gather(1, full.places) & full.real
    base = log_probabilities(located.head, final[~shallow[scored]])
    used = weights.gather(1, full.places)[learnt]
    return kl_divergence(located.head, read[learnt], base, used / used.mean())


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
