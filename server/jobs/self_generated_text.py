"""Text that the base itself writes, so that calibration and training need no data.

Half of the rows begin as free text, half as a conversation whose user turn the model invents: for a
small model that is closer to what it will be asked than a fixed corpus.
"""

from pathlib import Path

from rich.progress import Progress
from torch import Tensor, tensor

from pruners.support.checkpoint import Checkpoint
from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel, load_model
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence

_CONTENT_MARK = "\x00"
_MAX_ROWS = 96  # that are sampled together; more are hardly faster
_MAX_BATCH_TOKENS = 32_768  # of the rows that are sampled together
_SEED_STRIDE = 1_000_003  # between the seeds of equal rows of two calls


class SelfGeneratedText:
    """Rows of text by the model in `folder`, the same for the same seed.

    Finished rows are saved in the checkpoint. The model is loaded when rows are missing there.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, progress: Progress) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._progress = progress
        self._model: LoadedModel | None = None

    def rows(self, count: int, length: int, seed: int) -> list[Tensor]:
        """Return `count` rows of `length` token ids, or of as many as the model's context has."""
        batch = min(_MAX_ROWS, max(1, _MAX_BATCH_TOKENS // length))
        rows: list[Tensor] = []
        for first in range(0, count, batch):
            indices = range(first, min(first + batch, count))

            def compute(indices: range = indices) -> dict[str, Tensor]:
                sampled = self._sample(indices, length, seed)
                return {f"{i:06d}": row for i, row in zip(indices, sampled, strict=True)}

            # The key names the batch, since another call may want fewer rows or more.
            key = f"own rows {indices.start} to {indices.stop} of {length} by {seed}"
            saved = self._checkpoint.get_or_compute_tensors(key, compute)
            rows += [saved[name] for name in sorted(saved)]
        return rows

    def _sample(self, indices: range, length: int, seed: int) -> list[Tensor]:
        """Return the rows of these numbers, sampled at temperature 1.

        A row depends on its number and the seed alone, up to the rounding of batches.
        """
        if self._model is None:
            self._model = load_model(self._folder, self._folder.name)
        model, length = self._model, min(length, self._model.weights.context)
        config = EngineConfig(
            max_running=len(indices), kv_tokens=max(512, len(indices) * (length + 128))
        )
        runner = build_runner(model, config, None)
        starts = _row_starts(model)
        requests = [
            _request(model, index, starts[index % len(starts)], length, seed) for index in indices
        ]
        task = self._progress.add_task("Sampling text", total=len(indices) * length)

        def on_step(sequences: list[Sequence]) -> None:
            tokens = sum(len(sequence.history) for sequence in sequences)
            self._progress.update(task, completed=tokens)

        finished = answer_all(runner, model.tokenizer, requests, on_step)
        return [tensor([*sequence.request.prompt, *sequence.output]) for sequence in finished]


def _request(
    model: LoadedModel, index: int, start: list[int], length: int, seed: int
) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"self-{index}",
        prompt=tuple(start),
        max_tokens=length - len(start),
        variant=model.variants[BASE],
        sampling=SamplingParams(seed=seed * _SEED_STRIDE + index),
    )


def _row_starts(model: LoadedModel) -> list[list[int]]:
    """Return what rows begin with: a token that starts a text, and an opened user turn.

    Only tokens that the model knows are used; some tokenizers have more.
    """
    tokenizer, vocabulary = model.tokenizer, model.weights.shape.vocab
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    known = [token for token in special if token is not None and token < vocabulary]
    text_start = known[:1] or [0]
    if tokenizer.chat_template is None:
        return [text_start]
    turns = [{"role": "user", "content": _CONTENT_MARK}]
    opened = str(tokenizer.apply_chat_template(turns, tokenize=False)).split(_CONTENT_MARK)[0]
    turn_start = tokenizer.encode(opened, add_special_tokens=False)
    is_known = max(turn_start, default=vocabulary) < vocabulary
    return [text_start, turn_start] if is_known else [text_start]
