"""What a new request would meet: its time in the queue, to its first token and per token."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from controller.engine_status import EngineStatus, SequenceStatus, StepPart, shallow_part
from controller.reading import IncomingPrompt, PromptTokens, ServedChoice
from controller.step_time_model import StepTimes
from policies.candidates import RequestTokens, VariantForecast, queue_seconds
from pruners.variant import VariantSpec


def _merge(rows: Iterable[StepPart]) -> list[StepPart]:
    """Return the rows with each variant once."""
    merged: dict[VariantSpec, tuple[int, int]] = {}
    for variant, tokens, cached in rows:
        before = merged.get(variant, (0, 0))
        merged[variant] = before[0] + tokens, before[1] + cached
    return [(variant, *both) for variant, both in merged.items()]


class _Writing(NamedTuple):
    """Of one variant, seconds: a decode step, what each cached token adds to it, and the answer's
    share of full batches."""

    step: float
    per_cached: float
    work: float


class Forecast:
    """Predictions for one request, from one status of the engine. All times are in seconds.

    `wait` is the predicted time in the queue.
    """

    def __init__(
        self,
        step_times: StepTimes,
        status: EngineStatus,
        expected_output: Callable[[int], float],
        wait_factor: float = 1.0,
    ) -> None:
        """`expected_output` returns the expected tokens of an answer from its `max_tokens`;
        `wait_factor` is what recent waits were over their predictions."""
        self._step_times = step_times
        self._status = status
        self._running = [s for s in status.sequences if s.running]
        others = self._running[: status.max_running - 1]
        self._others = _merge((s.variant, 1, s.cached) for s in others)
        self.wait = wait_factor * self._predict_wait(expected_output)

    def by_choice(
        self,
        choices: Iterable[ServedChoice],
        tokens: RequestTokens,
        prompt: IncomingPrompt,
        work: float,
    ) -> dict[str, VariantForecast]:
        """Return the forecast for a request by each choice, by its label.

        `work` is the request's by the base in full, see `work`.
        """
        forecasts: dict[str, VariantForecast] = {}
        writing: dict[str, _Writing] = {}
        rates: dict[str, float] = {}
        for choice in choices:
            variant = choice.variant
            written = writing.get(variant.name)
            if written is None:
                written = writing[variant.name] = self._writing(variant, tokens)
            cached = prompt.cached(choice)
            parts = _parts(choice, prompt.left(choice, 0))
            ttft = ttft_uncached = self.wait + self._prefill(parts)
            if cached:
                parts = _parts(choice, prompt.left(choice, cached))
                ttft = self.wait + self._prefill(parts)
            read = 0.0
            for part, count in parts:
                read += count * self._rate(part, rates)
            forecasts[choice.label] = VariantForecast(
                ttft=ttft,
                ttft_uncached=ttft_uncached,
                tpot=written.step,
                tpot_per_cached=written.per_cached,
                cost=(read + written.work) / max(work, 1e-9),
            )
        return forecasts

    def work(self, base: VariantSpec, tokens: RequestTokens, cached: int) -> float:
        """Return the seconds that a request takes of a machine with full batches of the base.

        `cached` tokens of the prompt are in the prefix cache. Steps take as long as at present, so
        that other load on the host counts.
        """
        read = (tokens.prompt - cached) * self._rate(base, {})
        return read + self._writing(base, tokens).work

    def _writing(self, variant: VariantSpec, tokens: RequestTokens) -> _Writing:
        times, full = self._step_times, self._status.max_running
        sampled = 1 + sum(count for _, count, _ in self._others)
        attended = full * (tokens.prompt + tokens.output // 2)
        full_step = times.seconds([(variant, full, attended)], full)
        return _Writing(
            step=times.seconds([*self._others, (variant, 1, 0)], sampled),
            per_cached=times.per_cached(variant),
            work=tokens.output * full_step / full,
        )

    def _rate(self, part: VariantSpec, known: dict[str, float]) -> float:
        """Return the seconds to read a prompt token in full steps; `known` are earlier results."""
        rate = known.get(part.name)
        if rate is None:
            chunk = self._status.step_tokens
            rate = known[part.name] = self._step_times.seconds([(part, chunk, 0)], 1) / chunk
        return rate

    def _predict_wait(self, expected_output: Callable[[int], float]) -> float:
        status = self._status
        reading = self._prefill([part for s in status.sequences for part in _unread(s)])
        if len(status.sequences) < status.max_running:
            return reading
        row_steps = sum(
            min(s.output_left, expected_output(s.output_most)) for s in status.sequences
        )
        waiting = [s for s in status.sequences if not s.running]
        batch = [*self._running, *waiting][: status.max_running]
        step = self._step_times.seconds([(s.variant, 1, s.cached) for s in batch], len(batch))
        requests, slots = len(status.sequences), status.max_running
        return queue_seconds(requests, slots, row_steps, step) + reading

    def _prefill(self, prompts: list[tuple[VariantSpec, int]]) -> float:
        """Return the seconds to read `prompts` beside what runs.

        They are tokens, with what these run through: a variant or its `shallow_part`.
        """
        total = sum(tokens for _, tokens in prompts)
        if not total:
            return 0.0
        steps = -(-total // self._status.step_tokens)
        part = [(variant, -(-tokens // steps), 0) for variant, tokens in prompts]
        return steps * self._step_times.seconds([*self._others, *part], 1)


def _parts(choice: ServedChoice, prompt: PromptTokens) -> list[tuple[VariantSpec, int]]:
    """Return the tokens of a prompt with what they run through."""
    if choice.shallow is None:
        return [(choice.variant, prompt.full)]
    return [(choice.variant, prompt.full), (choice.shallow, prompt.shallow)]


def _unread(sequence: SequenceStatus) -> list[tuple[VariantSpec, int]]:
    """Return the unread tokens of a sequence's prompt with what they run through."""
    shallow, variant = sequence.shallow_left, sequence.variant
    if not shallow:
        return [(variant, sequence.prompt_left)]
    lower = shallow_part(variant, sequence.depth)
    return [(variant, sequence.prompt_left - shallow), (lower, shallow)]
