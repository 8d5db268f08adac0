"""Answers requests without a server, in the caller's thread."""

from collections.abc import Callable, Iterable

from transformers import PreTrainedTokenizerBase

from controller import StepRecord
from server.engine.detokenizer import Detokenizer, StopRules
from server.engine.runner import Runner
from server.engine.sequence import Delta, GenerationRequest, Sequence


def answer_all(
    runner: Runner,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[GenerationRequest],
    on_step: Callable[[list[Sequence]], None] = lambda sequences: None,
    on_record: Callable[[StepRecord], None] | None = None,
) -> list[Sequence]:
    """Run requests to their ends, batched together; return the finished sequences.

    `on_step` is called with all sequences after each step, `on_record` with the time of each pass
    of the decoder. Raises `RuntimeError` if one of the requests ends with an error.
    """
    sequences, errors = [], list[str]()

    def emit(delta: Delta) -> None:
        if delta.error is not None:
            errors.append(delta.error)

    for request in requests:
        detokenizer = Detokenizer(tokenizer, StopRules(), request.prompt)
        sequences.append(Sequence(request, detokenizer, emit))
        runner.scheduler.add(sequences[-1])
    while runner.step(on_record):
        if errors:
            raise RuntimeError(errors[0])
        on_step(sequences)
    return sequences
