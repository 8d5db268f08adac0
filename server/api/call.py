"""One HTTP call under way."""

import asyncio
from dataclasses import dataclass, field

from controller import Decision, PromptFeatures
from server.engine.engine import Generation, Inbox


@dataclass(slots=True)
class Call:
    """A call under way: one generation per prompt and answer, all by one decision."""

    call_id: str
    created: int
    decision: Decision
    generations: list[Generation]
    prompt_tokens: int
    features: PromptFeatures
    text: str
    choices: int  # answers to each prompt; those of one prompt stand together
    inbox: Inbox = field(default_factory=asyncio.Queue)

    @property
    def ended(self) -> bool:
        """Whether no answer of it is being written any more."""
        return all(generation.sequence.ended for generation in self.generations)

    def disclosure(self) -> dict[str, object]:
        """The `trimtab` object of the response: which variant answered, and why."""
        chosen, seen = self.decision.chosen, self.decision.observation
        return {
            "variant": chosen.action.variant,
            "kv_budget": chosen.action.kv_budget,
            "policy": self.decision.policy,
            "reason": self.decision.reason.value,
            "complexity": seen.complexity,
            "predicted_loss": chosen.loss,
            "predicted_ttft_ms": round(1e3 * chosen.ttft, 1),
            "predicted_tpot_ms": round(1e3 * chosen.tpot, 2),
            "predicted_queue_ms": round(1e3 * seen.wait, 1),
            **self._narrowed(),
        }

    def _narrowed(self) -> dict[str, object]:
        """The variants that answers ended with, if they got narrower midway."""
        narrowed = [g.sequence.variant.name for g in self.generations if g.sequence.narrowed]
        return {"narrowed_to": narrowed} if narrowed else {}

    def headers(self) -> dict[str, str]:
        """Headers that disclose the same."""
        return {"X-Trimtab-Variant": self.decision.action.variant, "X-Request-Id": self.call_id}
