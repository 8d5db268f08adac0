"""Text sampled from the base itself, by our own engine: calibration that needs no data.

Half of the rows start as free text, half as a conversation whose user turn the model invents; for
a small model that is closer to what it will be asked than any fixed corpus.
"""

from rich.progress import Progress
from torch import Tensor, tensor

from pruners.variant import BASE
from server.engine.load import LoadedModel
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.text import StopRules, TextStream

_MARK = "\x00"


def sample_rows(
    runner: Runner,
    model: LoadedModel,
    count: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Tensor]:
    """`count` rows of `length` tokens at temperature 1, the same for the same seed."""
    starts = _starts(model)
    made: list[Sequence] = []
    for index in range(count):
        start = starts[index % len(starts)]
        request = GenerationRequest(
            request_id=f"self-{index}",
            prompt=tuple(start),
            max_tokens=length - len(start),
            variant=model.variants[BASE],
            sampling=SamplingParams(seed=seed * 1_000_003 + index),
        )
        stream = TextStream(model.tokenizer, StopRules())
        made.append(Sequence(request, stream, lambda _: None))
        runner.scheduler.add(made[-1])
    task = None if progress is None else progress.add_task("Sampling text", total=count * length)
    while runner.step():
        if progress is not None and task is not None:
            progress.update(task, completed=sum(sequence.tokens for sequence in made))
    return [tensor([*sequence.request.prompt, *sequence.output]) for sequence in made]


def _starts(model: LoadedModel) -> list[list[int]]:
    """Where rows begin: the special tokens that start a text, and an opened user turn."""
    tokenizer = model.tokenizer
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    texts = [[token] for token in dict.fromkeys(special) if token is not None][:1] or [[0]]
    if tokenizer.chat_template is None:
        return texts
    frame = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
    opened = str(frame).split(_MARK)[0]
    return [*texts, tokenizer.encode(opened, add_special_tokens=False)]
