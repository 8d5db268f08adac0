"""What live answers lost, read again by the base and by the variant that gave them."""

from collections.abc import Sequence

from benchmarks.offered import Answer
from pruners.variant import BASE
from server.app import build_runner, load
from server.settings import JobSettings
from server.shadow.teacher_forcing import Rereading

_SLOTS = 4096  # cached tokens


class Reader:
    """Holds the default model; each answer is read once, however often it was given."""

    def __init__(self) -> None:
        self._model = load(JobSettings())
        self._runner = build_runner(self._model, JobSettings(kv_tokens=_SLOTS), None)
        self._known: dict[tuple[str, str, str], float] = {}

    def losses(self, answers: Sequence[Answer]) -> list[float]:
        """KL of each to the base, nats per token; what was not answered has none (0)."""
        return [self._loss(answer) for answer in answers]

    def _loss(self, answer: Answer) -> float:
        if answer.variant == BASE or not answer.text:
            return 0.0
        key = (answer.variant, answer.offer.prompt, answer.text)
        if key not in self._known:
            self._known[key] = self._read(answer)
        return self._known[key]

    def _read(self, answer: Answer) -> float:
        model = self._model
        turns = [{"role": "user", "content": answer.offer.prompt}]
        framed = model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        prompt = model.tokenizer.encode(str(framed), add_special_tokens=False)
        output = model.tokenizer.encode(answer.text, add_special_tokens=False)
        reading = Rereading(
            self._runner.decoder, prompt, output, model.variants[BASE],
            [model.variants[answer.variant]], piece=128,
        )  # fmt: skip
        with self._runner.threads():
            while reading.advance():
                pass
        (found,) = reading.result()
        reading.close()
        return found.kl
