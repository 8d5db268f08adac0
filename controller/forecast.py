"""What a new request would meet: its time in the queue, to its first token and per token."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.engine_status import EngineStatus
from controller.step_time_model import Rows, StepTimeModel
from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class Timing:
    """Predicted seconds to the first token (queue included) and per further token.

    `afresh` is the first token's if the prompt is read whole, as it is with a KV budget. `tpot` is
    without the answer's own cache, of which each token adds `per_cached`. `cost` is the request's
    work over what it is by the base.
    """

    ttft: float
    afresh: float
    tpot: float
    per_cached: float
    cost: float


def _merged(rows: Rows) -> list[tuple[VariantSpec, int, int]]:
    """The same rows with each variant once."""
    found: dict[VariantSpec, tuple[int, int]] = {}
    for variant, count, cached in rows:
        before = found.get(variant, (0, 0))
        found[variant] = before[0] + count, before[1] + cached
    return [(variant, *both) for variant, both in found.items()]


class Forecast:
    """Predictions for one request against one snapshot of the engine's load.

    `expected` says how many tokens an answer is thought to have, of the most that it may have.
    `wait_factor` is what recent waits were over their predictions.
    """

    def __init__(
        self,
        model: StepTimeModel,
        load: EngineStatus,
        expected: Callable[[int], float],
        wait_factor: float = 1.0,
    ) -> None:
        self._model = model
        self._load = load
        self._running = [s for s in load.sequences if s.running]
        others = self._running[: load.max_running - 1]
        self._others = _merged((s.variant, 1, s.cached) for s in others)
        self.wait = wait_factor * self._wait(expected)

    def timings(
        self,
        variants: Iterable[VariantSpec],
        prompt_tokens: int,
        output: int,
        reusable: Mapping[str, int],
    ) -> list[Timing]:
        """For so many tokens to read and to write, by each of `variants`, the base first.

        `reusable` are those that need not be read again, by the variant's name.
        """
        model = self._model
        found, whole = [], 0.0
        sampled = 1 + sum(count for _, count, _ in self._others)
        for variant in variants:
            reused = reusable.get(variant.name, 0)
            afresh = self.wait + self._prefill([(variant, prompt_tokens)])
            ttft = afresh
            if reused:
                ttft = self.wait + self._prefill([(variant, prompt_tokens - reused)])
            step = model.seconds([*self._others, (variant, 1, 0)], sampled)
            per_cached = model.per_cached(variant)
            mine = self.work(variant, prompt_tokens, output, reused)
            whole = whole or max(mine, 1e-9)
            found.append(Timing(ttft, afresh, step, per_cached, mine / whole))
        return found

    def work(self, variant: VariantSpec, prompt_tokens: int, output: int, reused: int) -> float:
        """Seconds that a request takes of a machine that always serves full batches of a variant.

        Of the prompt, `reused` tokens are cached already.
        As steps are at present: what else runs on the host leaves less of it for requests.
        """
        seconds, full = self._model.seconds, self._load.max_running
        piece = self._load.step_tokens
        prompt = (prompt_tokens - reused) * seconds([(variant, piece, 0)], 1) / piece
        cached = full * (prompt_tokens + output // 2)
        return prompt + output * seconds([(variant, full, cached)], full) / full

    def _wait(self, expected: Callable[[int], float]) -> float:
        load = self._load
        waiting = [s for s in load.sequences if not s.running]
        if len(load.sequences) < load.max_running:
            return self._prefill([(s.variant, s.prompt_left) for s in load.sequences])
        # The line moves as rows finish: all row-steps ahead, shared by the rows of a full batch.
        steps = sum(min(s.output_left, expected(s.output_most)) for s in load.sequences)
        # The last `max_running` answers need not finish before this one starts; one slot does.
        ahead = steps * (1 - (load.max_running - 1) / len(load.sequences))
        rows = [(s.variant, 1, s.cached) for s in [*self._running, *waiting]][: load.max_running]
        step = self._model.seconds(rows, len(rows))
        prefill = self._prefill([(s.variant, s.prompt_left) for s in load.sequences])
        return step * ahead / load.max_running + prefill

    def _prefill(self, prompts: list[tuple[VariantSpec, int]]) -> float:
        """Seconds to read these prompts, which share the steps' tokens, beside what runs."""
        total = sum(tokens for _, tokens in prompts)
        if not total:
            return 0.0
        steps = -(-total // self._load.step_tokens)
        part = _merged((variant, -(-tokens // steps), 0) for variant, tokens in prompts)
        return steps * self._model.seconds([*self._others, *part], 1)
