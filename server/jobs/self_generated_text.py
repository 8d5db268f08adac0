"""Text sampled from the base itself, by our own engine: calibration that needs no data.

Half of the rows start as free text, half as a conversation whose user turn the model invents; for
a small model that is closer to what it will be asked than any fixed corpus.
"""

from pathlib import Path

from rich.progress import Progress
from torch import Tensor, tensor

from pruners.support.checkpoint import Checkpoint
from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel, load_model
from server.engine.offline import answer_all
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence

_MARK = "\x00"
_ROWS = 96  # sampled together at most; more are hardly faster
_TOKENS = 32_768  # what their cache holds


class SelfGeneratedText:
    """Rows of a model's own text, the same for the same seed; what was sampled is noted.

    The model is loaded for the first rows that are not in the checkpoint.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, progress: Progress) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._progress = progress
        self._model: LoadedModel | None = None

    def rows(self, count: int, length: int, seed: int) -> list[Tensor]:
        """`count` rows of `length` tokens, or of as many as the model's context has."""
        batch = min(_ROWS, max(1, _TOKENS // length))
        made: list[Tensor] = []
        for first in range(0, count, batch):
            wanted = range(first, min(first + batch, count))

            def compute(wanted: range = wanted) -> dict[str, Tensor]:
                rows = self._sample(wanted, length, seed)
                return {f"{i:06d}": row for i, row in zip(wanted, rows, strict=True)}

            # Of all of them, since another call may want fewer or more.
            key = f"own rows {wanted.start} to {wanted.stop} of {length} by {seed}"
            noted = self._checkpoint.get_or_compute_tensors(key, compute)
            made += [noted[name] for name in sorted(noted)]
        return made

    def _sample(self, wanted: range, length: int, seed: int) -> list[Tensor]:
        if self._model is None:
            self._model = load_model(self._folder, self._folder.name)
        length = min(length, self._model.weights.context)
        config = EngineConfig(
            max_running=len(wanted),
            step_tokens=256,
            kv_tokens=max(512, len(wanted) * (length + 128)),
        )
        runner = build_runner(self._model, config, None)
        return sample_rows(runner, self._model, wanted, length, seed, self._progress)


def sample_rows(
    runner: Runner,
    model: LoadedModel,
    wanted: range,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Tensor]:
    """The rows of these numbers, `length` tokens each, sampled at temperature 1.

    A row depends on its number and the seed alone, up to the rounding of batches.
    """
    starts = _starts(model)

    def request(index: int) -> GenerationRequest:
        start = starts[index % len(starts)]
        return GenerationRequest(
            request_id=f"self-{index}",
            prompt=tuple(start),
            max_tokens=length - len(start),
            variant=model.variants[BASE],
            sampling=SamplingParams(seed=seed * 1_000_003 + index),
        )

    total = len(wanted) * length
    task = None if progress is None else progress.add_task("Sampling text", total=total)

    def on_step(sequences: list[Sequence]) -> None:
        if progress is not None and task is not None:
            progress.update(task, completed=sum(len(sequence.history) for sequence in sequences))

    made = answer_all(runner, model.tokenizer, map(request, wanted), on_step)
    return [tensor([*sequence.request.prompt, *sequence.output]) for sequence in made]


def _starts(model: LoadedModel) -> list[list[int]]:
    """Where rows begin: the special tokens that start a text, and an opened user turn.

    Only with tokens that the model knows; some tokenizers have more.
    """
    tokenizer, vocabulary = model.tokenizer, model.weights.shape.vocab
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    known = [token for token in special if token is not None and token < vocabulary]
    texts = [known[:1] or [0]]
    if tokenizer.chat_template is None:
        return texts
    frame = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
    opened = str(frame).split(_MARK)[0]
    turn = tokenizer.encode(opened, add_special_tokens=False)
    return [*texts, turn] if max(turn, default=vocabulary) < vocabulary else texts
