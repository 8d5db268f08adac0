"""What a new request would meet: its time in the queue, to its first token and per token."""

from dataclasses import dataclass

from controller.latency import StepModel
from controller.load import EngineLoad
from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class Timing:
    """Predicted seconds to the first token (queue included) and per further token."""

    ttft: float
    tpot: float


class Forecast:
    """Predictions for one request against one snapshot of the engine's load.

    `expected_output` bounds what an answer is thought to need, in tokens: most end long before
    their `max_tokens`.
    """

    def __init__(self, model: StepModel, load: EngineLoad, expected_output: float) -> None:
        self._model = model
        self._load = load
        self._running = [s for s in load.sequences if s.running]
        self._others = [(s.variant, 1) for s in self._running][: load.max_running - 1]
        self._cached = sum(s.cached for s in self._running)
        self.wait = self._wait(expected_output)

    def timing(self, variant: VariantSpec, prompt_tokens: int, cached: int) -> Timing:
        """For a prompt of so many tokens, served by `variant` with `cached` tokens in its cache."""
        prefill = self._prefill([(variant, prompt_tokens)])
        rows = [*self._others, (variant, 1)]
        step = self._model.seconds(rows, len(rows), self._cached + cached)
        return Timing(self.wait + prefill, step)

    def cost(self, variant: VariantSpec, base: VariantSpec) -> float:
        """Time of a full batch of `variant` relative to one of the base, cache aside."""
        full = self._load.max_running
        mine = self._model.seconds([(variant, full)], full, 0)
        return mine / max(self._model.seconds([(base, full)], full, 0), 1e-9)

    def _wait(self, expected_output: float) -> float:
        load = self._load
        waiting = [s for s in load.sequences if not s.running]
        if len(load.sequences) < load.max_running:
            return self._prefill([(s.variant, s.prompt_left) for s in load.sequences])
        # The line moves as rows finish: all row-steps ahead, shared by the rows of a full batch.
        steps = sum(min(s.output_left, expected_output) for s in load.sequences)
        # The last `max_running` answers need not finish before this one starts; one slot does.
        ahead = steps * (1 - (load.max_running - 1) / len(load.sequences))
        rows = [(s.variant, 1) for s in [*self._running, *waiting]][: load.max_running]
        step = self._model.seconds(rows, len(rows), self._cached)
        prefill = self._prefill([(s.variant, s.prompt_left) for s in load.sequences])
        return step * ahead / load.max_running + prefill

    def _prefill(self, prompts: list[tuple[VariantSpec, int]]) -> float:
        """Seconds to read these prompts, which share the steps' tokens, beside what runs."""
        total = sum(tokens for _, tokens in prompts)
        if not total:
            return 0.0
        steps = -(-total // self._load.step_tokens)
        part = [(variant, -(-tokens // steps)) for variant, tokens in prompts]
        return steps * self._model.seconds([*self._others, *part], 1, self._cached)
