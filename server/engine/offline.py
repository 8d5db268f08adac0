"""Answers without a server: requests in, finished sequences out, in the caller's thread."""

from collections.abc import Callable, Iterable

from transformers import PreTrainedTokenizerBase

from controller import StepRecord
from server.engine.detokenizer import StopRules, TextStream
from server.engine.runner import Runner
from server.engine.sequence import Delta, GenerationRequest, Sequence


def answer_all(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[GenerationRequest],
    on_step: Callable[[list[Sequence]], None] = lambda sequences: None,
    step_done: Callable[[StepRecord], None] | None = None,
) -> list[Sequence]:
    """Runs the requests to their ends, together; `on_step` sees how far they are.

    `step_done` hears what each step took. Raises `RuntimeError` if one of them ends with an error.
    """
    sequences, errors = [], list[str]()

    def emit(delta: Delta) -> None:
        if delta.error is not None:
            errors.append(delta.error)

    for request in requests:
        stream = TextStream(tokenizer, StopRules(), request.prompt)
        sequences.append(Sequence(request, stream, emit))
        runner.scheduler.add(sequences[-1])
    while runner.step(step_done):
        if errors:
            raise RuntimeError(errors[0])
        on_step(sequences)
    return sequences
