"""The training loop: many variants learn from one pass of the base over each batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.correction import Correction, RecoveryError
from pruners.data.rows import TokenBatch, count_tokens, make_batches
from pruners.distill.loss import kl_divergence, log_probabilities
from pruners.distill.options import TrainingOptions
from pruners.distill.student import Student
from pruners.distill.trained_student import TrainedStudent, copy_state
from pruners.distill.training_state import read_state, write_state
from pruners.realization.variant_set import VariantSet
from pruners.variant import Block, VariantSpec

MICRO_TOKENS = 2048
"""Tokens of one forward pass; a larger batch takes several, whose gradients add up."""
_WARM_UP = 0.05  # share of all steps
_FINAL_RATE = 0.05  # share of the highest learning rate
_RATES = {"norms": 1.5e-3, "residuals": 2e-3, "lora": 1e-3}
"""Highest learning rates by tier for batches of `_RATE_TOKENS`; larger ones take sqrt(ratio) more.

They are for low ranks where a tier trains some; norms and biases then take half.
"""
_RATE_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """1-D token ids, ragged: `training` rows to learn from, `held_out` ones to choose by."""

    training: Sequence[torch.Tensor]
    held_out: Sequence[torch.Tensor]


@dataclass(slots=True)
class TrainingResult:
    """Corrections of one variant, and its held-out KL at each check, the first before any step."""

    corrections: dict[Block, Correction]
    history: list[float] = field(default_factory=list)


def train(
    located: LocatedModel,
    variants: VariantSet,
    rows: TrainingRows,
    options: TrainingOptions,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, TrainingResult]:
    """Train variants against the base for one epoch, by KL(base || variant) over the vocabulary.

    AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) without weight decay, betas (0.9, 0.95),
    gradients clipped to norm 1, a warmed-up learning rate with cosine decay. Each variant returns
    its best state on the held-out rows; the one before training counts too. With a `state` file an
    interrupted call goes on from its last check, to the same result. Raises `RecoveryError` if the
    rows do not fill a batch, or for variants that a `Student` refuses.
    """
    plan = list(_draw_batches(rows.training, options))
    if not plan:
        raise RecoveryError(
            f"{count_tokens(rows.training)} tokens are less than a batch of "
            f"{options.batch_tokens}; give more text"
        )
    trainer = Trainer(located, variants, rows.held_out, options, len(plan))
    done = 0 if state is None else read_state(state, trainer.students)
    task = None
    if progress is not None:
        task = progress.add_task("Training", total=len(plan), completed=done)
    if done == 0:
        trainer.check()
    for step in range(done, len(plan)):
        if trainer.finished():
            break
        trainer.step(step, plan[step])
        if (step + 1) % options.check == 0 or step + 1 == len(plan):
            trainer.check()
            if state is not None:
                write_state(state, step + 1, trainer.students)
        if progress is not None and task is not None:
            progress.update(task, completed=step + 1, description=trainer.summary())
    return {student.name: trainer.result(student) for student in trainer.students}


class Trainer:
    """Students of one base that learn from the same batches; `steps` is the length of the plan."""

    def __init__(
        self,
        located: LocatedModel,
        variants: VariantSet,
        held_out: Sequence[torch.Tensor],
        options: TrainingOptions,
        steps: int,
    ) -> None:
        self._located = located
        self._variants = variants
        self._held_out = list(make_batches(held_out, MICRO_TOKENS))
        self._options = options
        self._steps = steps
        self.students = [self._student(spec) for spec in variants.specs]

    def _student(self, spec: VariantSpec) -> TrainedStudent:
        options, corrections = self._options, self._variants.corrections_of(spec)
        student = Student(self._located, spec, self._variants.order, corrections, options).to(
            self._located.embed.weight.device
        )
        scale = (options.batch_tokens / _RATE_TOKENS) ** 0.5
        rate = scale * _RATES[options.tier] if options.rate is None else options.rate
        trained = [p for p in student.parameters() if p.requires_grad and p.numel()]
        matrices = [p for p in trained if p.dim() == 2]
        vectors = [p for p in trained if p.dim() == 1]
        groups = [{"params": vectors, "peak": rate / 2 if matrices else rate}]
        if matrices:
            groups.append({"params": matrices, "peak": rate})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        return TrainedStudent(spec.name, student, optimizer, copy_state(student))

    def finished(self) -> bool:
        """Return whether no variant gets better any more."""
        return not self._active()

    def _active(self) -> list[TrainedStudent]:
        patience = self._options.patience
        return [student for student in self.students if student.checks_since_best() < patience]

    def step(self, step: int, rows: Sequence[torch.Tensor]) -> None:
        """Update every variant that still gets better, with the gradient of one batch of rows."""
        active = self._active()
        total = sum(
            int(batch.scored_positions().sum()) for batch in make_batches(rows, MICRO_TOKENS)
        )
        for batch in make_batches(rows, MICRO_TOKENS):
            base, scored = self._base(batch)
            share = len(base) / total
            for student in active:
                loss = self._loss(student, batch, base, scored)
                (loss * share).backward()
        for student in active:
            for group in student.optimizer.param_groups:
                group["lr"] = group["peak"] * self._rate_factor(step)
            parameters = [p for g in student.optimizer.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            student.optimizer.step()
            student.optimizer.zero_grad(set_to_none=True)

    def _rate_factor(self, step: int) -> float:
        """Return the learning rate of a step over the highest one: linear warm-up, then cosine."""
        warm = max(1, round(_WARM_UP * self._steps))
        if step < warm:
            return (step + 1) / warm
        through = (step - warm) / max(1, self._steps - warm)
        return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * through))

    def _base(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the base's log-probabilities `[positions, vocab]`, and which positions count."""
        with torch.no_grad():
            hidden = final_hidden(self._located, batch)
            scored = batch.scored_positions().to(hidden.device)
            return log_probabilities(self._located.head, hidden[scored]), scored

    def _loss(
        self, student: TrainedStudent, batch: TokenBatch, base: torch.Tensor, scored: torch.Tensor
    ) -> torch.Tensor:
        return kl_divergence(self._located.head, student.model.hidden(batch)[scored], base)

    @torch.no_grad()
    def check(self) -> None:
        """Note every active variant's held-out KL, and its state if that is the best."""
        active = [student for student in self.students if not student.history] or self._active()
        sums, tokens = dict.fromkeys((student.name for student in active), 0.0), 0
        for batch in self._held_out:
            base, scored = self._base(batch)
            tokens += len(base)
            for student in active:
                sums[student.name] += float(self._loss(student, batch, base, scored)) * len(base)
        for student in active:
            kl = sums[student.name] / tokens
            if not student.history or kl < min(student.history):
                student.best = copy_state(student.model)
            student.history.append(kl)

    def summary(self) -> str:
        """Return a label for a progress bar: held-out KL before training, and the best one now."""
        now = [f"{s.history[0]:.3f}>{min(s.history):.3f}" for s in self.students]
        return f"Training, KL {' '.join(now[:3])}{' ...' if len(now) > 3 else ''}"

    def result(self, student: TrainedStudent) -> TrainingResult:
        """Return the best state as corrections; those before training if nothing was better."""
        before = self._variants.corrections.get(student.name, {})
        if student.checks_since_best() == len(student.history) - 1:
            return TrainingResult(dict(before), student.history)
        student.model.load_state_dict(student.best)
        return TrainingResult(student.model.corrections(before), student.history)


def _draw_batches(
    rows: Sequence[torch.Tensor], options: TrainingOptions
) -> Iterator[list[torch.Tensor]]:
    """Yield batches of whole rows in random order, each of at least `batch_tokens` tokens."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(options.seed))
    batch: list[torch.Tensor] = []
    for number in order.tolist():
        batch.append(rows[number])
        if count_tokens(batch) >= options.batch_tokens:
            yield batch
            batch = []
