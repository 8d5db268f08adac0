"""A second of measured steps before the first request: the latency model's first fit."""

import itertools

import torch
from transformers import PreTrainedTokenizerBase

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.runner import Runner
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.text import StopRules, TextStream

_PROMPT = 32
_REPEATS = 3
_NUMBERS = itertools.count()


def measure_steps(
    runner: Runner, tokenizer: PreTrainedTokenizerBase, variants: list[VariantSpec]
) -> list[StepRecord]:
    """Runs prompts and decode steps of each variant, alone and in a full batch.

    Of repeated steps the fastest counts; the first ones also warm the allocator and the kernels.
    """
    rows = runner.scheduler.limits.max_running
    records: list[StepRecord] = []
    for variant in variants:
        for count in sorted({1, rows}):
            records += _measure(runner, tokenizer, variant, count)
    return records


def _measure(
    runner: Runner, tokenizer: PreTrainedTokenizerBase, variant: VariantSpec, rows: int
) -> list[StepRecord]:
    vocab = runner.decoder.weights.shape.vocab

    def sequence(index: int) -> Sequence:
        request = GenerationRequest(
            request_id=f"warm-up-{index}",
            # No two begin alike, so that nothing is taken from the prefix cache.
            prompt=tuple((next(_NUMBERS) + 31 * i) % vocab for i in range(_PROMPT)),
            max_tokens=_REPEATS + 2,
            variant=variant,
        )
        return Sequence(request, TextStream(tokenizer, StopRules()), lambda _: None)

    steps: list[StepRecord] = []
    for index in range(rows):
        runner.scheduler.add(sequence(index))
    with torch.inference_mode():
        while runner.step(steps.append):
            pass
    decode = [s for s in steps if s.sampled == rows and sum(n for _, n in s.rows) == rows]
    prompts = [s for s in steps if sum(n for _, n in s.rows) > rows]
    return [min(part, key=lambda s: s.seconds) for part in (decode, prompts) if part]
