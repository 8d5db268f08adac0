"""One HTTP request that is being answered."""

import asyncio
from dataclasses import dataclass, field

from controller import Decision, PromptFeatures
from server.engine.engine import Generation, Inbox


@dataclass(slots=True)
class ActiveRequest:
    """A request after its decision: one generation per prompt and choice, all by that decision.

    `choices` is the number of answers to each prompt; those of one prompt stand together in
    `generations`. `unfinished` maps the generations that have not ended to their positions.
    `text` is what the analyzer read, `features` what it found there.
    """

    request_id: str
    created: int
    decision: Decision
    features: PromptFeatures
    text: str
    prompt_tokens: int
    choices: int
    generations: list[Generation] = field(default_factory=list)
    unfinished: dict[Generation, int] = field(default_factory=dict)
    inbox: Inbox = field(default_factory=asyncio.Queue)

    def add(self, generation: Generation) -> None:
        """Add the generation of the next answer."""
        self.unfinished[generation] = len(self.generations)
        self.generations.append(generation)

    @property
    def ended(self) -> bool:
        """Whether the engine writes none of the answers any more."""
        return all(generation.sequence.ended for generation in self.generations)

    def disclosure(self) -> dict[str, object]:
        """Return the `trimtab` object of the response: which variant answered, and why."""
        chosen, observation = self.decision.chosen, self.decision.observation
        disclosed: dict[str, object] = {
            "variant": chosen.action.variant,
            "kv_budget": chosen.action.kv_budget,
            "policy": self.decision.policy,
            "reason": self.decision.reason.value,
            "complexity": observation.complexity,
            "predicted_loss": chosen.loss,
            "predicted_ttft_ms": round(1e3 * chosen.ttft, 1),
            "predicted_tpot_ms": round(1e3 * chosen.tpot, 2),
            "predicted_queue_ms": round(1e3 * observation.wait, 1),
        }
        sequences = [generation.sequence for generation in self.generations]
        narrowed = [sequence.variant.name for sequence in sequences if sequence.narrowed]
        if narrowed:  # the variants that answers ended with
            disclosed["narrowed_to"] = narrowed
        return disclosed

    def headers(self) -> dict[str, str]:
        """Return the response headers that name the variant and the request."""
        return {"X-Trimtab-Variant": self.decision.action.variant, "X-Request-Id": self.request_id}
