"""Answers requests without a server, in the caller's thread."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.detokenizer import Detokenizer, StopRules
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import Delta, GenerationRequest, Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_all(
    runner: Runner,
    tokenizer: "PreTrainedTokenizerBase",
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


def sampled_requests(
    prompts: Iterable[tuple[int, ...]],
    variant: VariantSpec,
    eos_token_ids: frozenset[int],
    max_tokens: int,
    first: int = 0,
) -> list[GenerationRequest]:
    """Return a request for each prompt, whose answer a variant samples at temperature 1.

    Answers have 2 to `max_tokens` tokens. The numbers of the prompts, from `first` on, are the
    seeds.
    """
    return [
        GenerationRequest(
            request_id=str(seed),
            prompt=prompt,
            max_tokens=max_tokens,
            variant=variant,
            sampling=SamplingParams(seed=seed),
            eos_token_ids=eos_token_ids,
            min_tokens=2,
        )
        for seed, prompt in enumerate(prompts, first)
    ]
