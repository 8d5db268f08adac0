"""What a new request would meet: its time in the queue, to its first token and per token."""

from collections.abc import Callable, Iterable, Mapping

from controller.engine_status import EngineStatus, StepPart
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

    def by_variant(
        self,
        variants: Iterable[VariantSpec],
        tokens: RequestTokens,
        cached_prefix: Mapping[tuple[str, str | None], int],
    ) -> dict[str, VariantForecast]:
        """Return the forecast for a request by each variant, the base first.

        `cached_prefix` are the prompt tokens in the prefix cache, by the names of the variant and
        of the reader (None: in full).
        """
        times = self._step_times
        forecasts, base_work = {}, 0.0
        sampled = 1 + sum(count for _, count, _ in self._others)
        for variant in variants:
            cached = cached_prefix.get((variant.name, None), 0)
            ttft = ttft_uncached = self.wait + self._prefill([(variant, tokens.prompt)])
            if cached:
                ttft = self.wait + self._prefill([(variant, tokens.prompt - cached)])
            work = self.work(variant, tokens, cached)
            base_work = base_work or max(work, 1e-9)
            forecasts[variant.name] = VariantForecast(
                ttft=ttft,
                ttft_uncached=ttft_uncached,
                tpot=times.seconds([*self._others, (variant, 1, 0)], sampled),
                tpot_per_cached=times.per_cached(variant),
                cost=work / base_work,
            )
        return forecasts

    def work(self, variant: VariantSpec, tokens: RequestTokens, cached: int) -> float:
        """Return the seconds that a request takes of a machine with full batches of a variant.

        `cached` tokens of the prompt are in the prefix cache. Steps take as long as at present, so
        that other load on the host counts.
        """
        seconds, full = self._step_times.seconds, self._status.max_running
        chunk = self._status.step_tokens
        prompt = (tokens.prompt - cached) * seconds([(variant, chunk, 0)], 1) / chunk
        attended = full * (tokens.prompt + tokens.output // 2)
        return prompt + tokens.output * seconds([(variant, full, attended)], full) / full

    def _predict_wait(self, expected_output: Callable[[int], float]) -> float:
        status = self._status
        reading = self._prefill([(s.variant, s.prompt_left) for s in status.sequences])
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
        """Return the seconds to read `prompts` (variants and tokens) beside what runs."""
        total = sum(tokens for _, tokens in prompts)
        if not total:
            return 0.0
        steps = -(-total // self._status.step_tokens)
        part = _merge((variant, -(-tokens // steps), 0) for variant, tokens in prompts)
        return steps * self._step_times.seconds([*self._others, *part], 1)
