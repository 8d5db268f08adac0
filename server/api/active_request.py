"""One HTTP request that is being answered."""

import asyncio
from dataclasses import dataclass, field

from controller import Decision, PromptFeatures
from pruners.architecture import Shape
from pruners.reading.reader import FULL
from server.api.answer_timing import AnswerTiming
from server.api.caller import Caller
from server.api.prompt_reading import PromptReading
from server.engine.engine import Generation, Inbox


@dataclass(slots=True)
class ActiveRequest:
    """A request after its decision: one generation per prompt and choice, all by that decision.

    `operation` is what traces call it: `chat` or `text_completion`. `first` is the decision of its
    arrival. `decision` replaces it when the prompt is about to be
    read; from then on it is `final`. The engine's thread sets both. `counted` says that it is in
    the metrics. `choices` is the number of answers to each prompt; those of one prompt stand
    together in `generations`. `unfinished` maps the generations that have not ended to their
    positions. `token_seen_at` is when the last token of each was written that was read from the
    inbox, where that is counted. `text` is what the analyzer read, `features` what it found there.
    `shape` is the base's.
    """

    caller: Caller
    operation: str
    created: int
    decision: Decision
    features: PromptFeatures
    text: str
    prompt_tokens: int
    choices: int
    shape: Shape
    final: bool
    generations: list[Generation] = field(default_factory=list)
    unfinished: dict[Generation, int] = field(default_factory=dict)
    inbox: Inbox = field(default_factory=asyncio.Queue)
    counted: bool = False
    token_seen_at: dict[Generation, float] = field(default_factory=dict)
    first: Decision = field(init=False)

    def __post_init__(self) -> None:
        """Keep the decision of the arrival."""
        self.first = self.decision

    def add(self, generation: Generation) -> None:
        """Add the generation of the next answer."""
        self.unfinished[generation] = len(self.generations)
        self.generations.append(generation)

    @property
    def request_id(self) -> str:
        """The request's id, which answers, headers and logs have."""
        return self.caller.request_id

    @property
    def client(self) -> str:
        """A short hash of the client's API key, or "-"."""
        return self.caller.client

    @property
    def ended(self) -> bool:
        """Whether the engine writes none of the answers any more."""
        return all(generation.sequence.ended for generation in self.generations)

    @property
    def reader(self) -> str:
        """The name of the reader of the prompts, `full` for none."""
        return self.decision.action.reader or FULL

    @property
    def reading(self) -> PromptReading | None:
        """How the prompts were read, each once; None until all of them have begun to be read."""
        firsts = (generation.sequence for generation in self.generations[:: self.choices])
        return PromptReading.of(firsts, self.shape)

    @property
    def timing(self) -> AnswerTiming:
        """How long its parts have taken so far."""
        return AnswerTiming.of([generation.sequence for generation in self.generations])

    def disclosure(self) -> dict[str, object]:
        """Return the `trimtab` object of the response: which action was chosen, and why.

        What was predicted stands beside what has been measured so far.
        """
        decision = self.decision
        chosen = decision.chosen
        disclosed: dict[str, object] = {
            "variant": chosen.action.variant,
            "kv_budget": chosen.action.kv_budget,
            "read": self.reader,
            "policy": decision.policy,
            "reason": decision.reason.value,
            "waiting": decision.observation.waiting,
            "complexity": decision.observation.complexity,
            "predicted_loss": chosen.loss,
            "predicted_ttft_ms": round(1e3 * chosen.ttft, 1),
            "predicted_tpot_ms": round(1e3 * chosen.tpot, 2),
            "predicted_queue_ms": round(1e3 * self.first.observation.wait, 1),
            **self.timing.disclosure(),
        }
        reading = self.reading
        if reading is not None:
            disclosed["read_tokens"] = reading.tokens
            disclosed["read_compute"] = round(reading.compute, 4)
        sequences = [generation.sequence for generation in self.generations]
        narrowed = [sequence.variant.name for sequence in sequences if sequence.narrowed]
        if narrowed:  # the variants that answers ended with
            disclosed["narrowed_to"] = narrowed
        return disclosed

    def headers(self) -> dict[str, str]:
        """Return the response headers: the request's id, the action, its reason and its loss."""
        chosen = self.decision.chosen
        named: dict[str, object] = {
            "Variant": chosen.action.variant,
            "Read": self.reader,
            "Kv-Budget": chosen.action.kv_budget,
            "Policy": self.decision.policy,
            "Reason": self.decision.reason.value,
            "Loss": chosen.loss,
        }
        told = {f"X-Trimtab-{name}": str(it) for name, it in named.items() if it is not None}
        return {**told, "X-Request-Id": self.request_id}
