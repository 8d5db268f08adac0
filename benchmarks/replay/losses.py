"""What live answers lost: they are read again by the base, and as they were read and written.

What a KV budget loses is not measured. The figures say how many answers had one.
"""

from collections.abc import Sequence

from benchmarks.replay.open_loop import TimedAnswer
from pruners.variant import BASE
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.reading_depth import ReadingDepths
from server.engine.runner_factory import build_runner
from server.shadow.teacher_forcing import ForcedModel, TeacherForcing

_SLOTS = 8192  # cached tokens


class LossMeter:
    """Holds the default model, and the loss of every answer that was read before."""

    def __init__(self) -> None:
        self._model = load_configured_model(ModelConfig())
        self._runner = build_runner(self._model, EngineConfig(kv_tokens=_SLOTS), None)
        self._reading = ReadingDepths(
            self._model.weights.shape.layers,
            self._model.readers.values(),
            self._model.token_kinds,
        )
        self._known: dict[tuple[str, str, str], float] = {}

    def losses(self, answers: Sequence[TimedAnswer]) -> list[float]:
        """Return the KL of each answer to the base, nats per token; 0 where there is no answer."""
        return [self._loss(answer) for answer in answers]

    def _loss(self, answer: TimedAnswer) -> float:
        if answer.action.choice == BASE or not answer.text:
            return 0.0
        key = (answer.action.choice, answer.request.prompt, answer.text)
        if key not in self._known:
            self._known[key] = self._read(answer)
        return self._known[key]

    def _read(self, answer: TimedAnswer) -> float:
        model = self._model
        turns = [{"role": "user", "content": answer.request.prompt}]
        framed = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        prompt = model.tokenizer.encode(str(framed), add_special_tokens=False)
        output = model.tokenizer.encode(answer.text, add_special_tokens=False)
        name, action = answer.action.reader, answer.action
        reader = None if name is None else model.readers[name]
        forced = ForcedModel(model.variants[action.variant], self._reading.of(prompt, reader))
        reading = TeacherForcing(
            self._runner.decoder, prompt, output, model.variants[BASE], [forced], chunk_tokens=128
        )
        with self._runner.threads():
            while reading.advance():
                pass
        (found,) = reading.losses()
        reading.close()
        return found.kl
