"""The loop: many variants learn from one pass of the base over each batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.correction import Correction, RecoveryError
from pruners.data.rows import TokenBatch, count_tokens, make_batches
from pruners.distill.learner import Learner, copied
from pruners.distill.loss import distribution, divergence
from pruners.distill.state import read_state, write_state
from pruners.distill.student import Student, Tier
from pruners.realization.order import Order
from pruners.variant import Block, VariantSpec

MICRO_TOKENS = 2048
"""Read at once; a larger batch is read in parts, whose gradients add up."""
_WARM_UP = 0.05  # of all steps
_LAST = 0.05  # of the highest learning rate
_RATES = {"norms": 1.5e-3, "residuals": 2e-3, "lora": 1e-3}
"""By tier for batches of 2,048 tokens, growing with the square root of larger ones.

They are those of low ranks where such are trained; norms and biases then take half.
"""


@dataclass(frozen=True, slots=True)
class Training:
    """How to train. `rank` is that of low ranks, `rate` the highest learning rate.

    Each variant stops `patience` checks after its best, a check being made every `check` steps.
    """

    tier: Tier = "residuals"
    rank: int = 16
    batch_tokens: int = 2048
    rate: float | None = None
    check: int = 10
    patience: int = 4
    seed: int = 0


@dataclass(slots=True)
class Trained:
    """What came out for one variant: held-out KL at each check, the first before any step."""

    corrections: dict[Block, Correction]
    history: list[float] = field(default_factory=list)


def train(
    located: LocatedModel,
    specs: Sequence[VariantSpec],
    order: Order,
    corrections: Mapping[str, Mapping[Block, Correction]],
    rows: Sequence[torch.Tensor],
    held_out: Sequence[torch.Tensor],
    training: Training,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Trained]:
    """Trains variants against the base on `rows`, one epoch, by KL over the full vocabulary.

    AdamW without decay, betas .9 and .95, gradients clipped to 1, the rate warmed up and let down
    by a cosine. `held_out` rows say which state is kept: the best, the one before training
    included. With a `state` file an interrupted call goes on from its last check, to the same
    result. Raises `RecoveryError` if there is no batch to train on.
    """
    plan = list(_drawn(rows, training))
    if not plan:
        raise RecoveryError(
            f"{count_tokens(rows)} tokens are less than a batch of {training.batch_tokens}; "
            "give more text"
        )
    run = _Run(located, specs, order, corrections, held_out, training, len(plan))
    done = 0 if state is None else read_state(state, run.learners)
    task = None
    if progress is not None:
        task = progress.add_task("Training", total=len(plan), completed=done)
    if done == 0:
        run.check()
    for step in range(done, len(plan)):
        if run.finished():
            break
        run.step(step, plan[step])
        if (step + 1) % training.check == 0 or step + 1 == len(plan):
            run.check()
            if state is not None:
                write_state(state, step + 1, run.learners)
        if progress is not None and task is not None:
            progress.update(task, completed=step + 1, description=run.summary())
    return {learner.name: run.result(learner) for learner in run.learners}


class _Run:
    def __init__(
        self,
        located: LocatedModel,
        specs: Sequence[VariantSpec],
        order: Order,
        corrections: Mapping[str, Mapping[Block, Correction]],
        held_out: Sequence[torch.Tensor],
        training: Training,
        steps: int,
    ) -> None:
        self._decoder = located
        self._before = corrections
        self._held_out = list(make_batches(held_out, MICRO_TOKENS))
        self._training = training
        self._steps = steps
        self.learners = [self._learner(spec, order) for spec in specs]

    def _learner(self, spec: VariantSpec, order: Order) -> Learner:
        training, own = self._training, self._before.get(spec.name, {})
        student = Student(
            self._decoder, spec, order, own, training.tier, training.rank, training.seed
        ).to(self._decoder.embed.weight.device)
        scale = (training.batch_tokens / 2048) ** 0.5
        rate = scale * _RATES[training.tier] if training.rate is None else training.rate
        trained = [p for p in student.parameters() if p.requires_grad and p.numel()]
        ranks = [p for p in trained if p.dim() == 2]
        vectors = [p for p in trained if p.dim() == 1]
        groups = [{"params": vectors, "peak": rate / 2 if ranks else rate}]
        if ranks:
            groups.append({"params": ranks, "peak": rate})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        return Learner(spec.name, student, optimizer, copied(student))

    def finished(self) -> bool:
        return not self._active()

    def _active(self) -> list[Learner]:
        return [
            learner for learner in self.learners if learner.since_best() < self._training.patience
        ]

    def step(self, step: int, rows: Sequence[torch.Tensor]) -> None:
        """One update of every variant that still gets better."""
        active = self._active()
        total = sum(
            int(batch.scored_positions().sum()) for batch in make_batches(rows, MICRO_TOKENS)
        )
        for batch in make_batches(rows, MICRO_TOKENS):
            base, scored = self._base(batch)
            share = len(base) / total
            for learner in active:
                loss = self._divergence(learner, batch, base, scored)
                (loss * share).backward()
        for learner in active:
            for group in learner.optimizer.param_groups:
                group["lr"] = group["peak"] * self._factor(step)
            parameters = [p for g in learner.optimizer.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)

    def _factor(self, step: int) -> float:
        warm = max(1, round(_WARM_UP * self._steps))
        if step < warm:
            return (step + 1) / warm
        through = (step - warm) / max(1, self._steps - warm)
        return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * through))

    def _base(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hidden = final_hidden(self._decoder, batch)
            scored = batch.scored_positions().to(hidden.device)
            return distribution(self._decoder.head, hidden[scored]), scored

    def _divergence(
        self, learner: Learner, batch: TokenBatch, base: torch.Tensor, scored: torch.Tensor
    ) -> torch.Tensor:
        return divergence(self._decoder.head, learner.student.hidden(batch)[scored], base)

    @torch.no_grad()
    def check(self) -> None:
        """Notes every active variant's held-out KL, and its state if that is the best."""
        active = [learner for learner in self.learners if not learner.history] or self._active()
        sums, tokens = dict.fromkeys((learner.name for learner in active), 0.0), 0
        for batch in self._held_out:
            base, scored = self._base(batch)
            tokens += len(base)
            for learner in active:
                loss = float(self._divergence(learner, batch, base, scored)) * len(base)
                sums[learner.name] += loss
        for learner in active:
            kl = sums[learner.name] / tokens
            if not learner.history or kl < min(learner.history):
                learner.best = copied(learner.student)
            learner.history.append(kl)

    def summary(self) -> str:
        """For a progress bar: held-out KL before and now."""
        now = [f"{le.history[0]:.3f}>{min(le.history):.3f}" for le in self.learners]
        return f"Training, KL {' '.join(now[:3])}{' ...' if len(now) > 3 else ''}"

    def result(self, learner: Learner) -> Trained:
        """The best state as corrections."""
        before = self._before.get(learner.name, {})
        if learner.since_best() == len(learner.history) - 1:
            return Trained(dict(before), learner.history)  # nothing was better than not to train
        learner.student.load_state_dict(learner.best)
        return Trained(learner.student.corrections(before), learner.history)


def _drawn(rows: Sequence[torch.Tensor], training: Training) -> Iterator[list[torch.Tensor]]:
    """Batches of at least as many tokens as asked for, of whole rows in random order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
    batch: list[torch.Tensor] = []
    for number in order.tolist():
        batch.append(rows[number])
        if count_tokens(batch) >= training.batch_tokens:
            yield batch
            batch = []
