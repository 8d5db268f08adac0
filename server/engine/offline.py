"""Answers without a server: requests in, finished sequences out, in the caller's thread."""

from collections.abc import Callable, Iterable

from transformers import PreTrainedTokenizerBase

from controller import StepRecord
from server.engine.runner import Runner
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.text import StopRules, TextStream


def answer_all(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[GenerationRequest],
    on_step: Callable[[list[Sequence]], None] = lambda sequences: None,
    step_done: Callable[[StepRecord], None] | None = None,
) -> list[Sequence]:
    """Runs the requests to their ends, together; `on_step` sees how far they are.

    `step_done` hears what each step took.
    """
    sequences = []
    for request in requests:
        stream = TextStream(tokenizer, StopRules(), request.prompt)
        sequences.append(Sequence(request, stream, lambda delta: None))
        runner.scheduler.add(sequences[-1])
    while runner.step(step_done):
        on_step(sequences)
    return sequences
