"""All actions of a server, and their measured losses."""

from dataclasses import dataclass

from policies import Action
from policies.candidates import add_kv_loss
from pruners.variant import BASE, VariantSpec


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The variants (base first), the KV budgets in tokens, and their measured losses.

    Losses are in nats per token against the base, on held-out text. The loss of a budget is added
    to that of a variant. What was never measured is absent.
    """

    variants: dict[str, VariantSpec]
    kv_budgets: tuple[int, ...]
    variant_loss: dict[str, float]
    kv_loss: dict[int, float]

    def actions(self) -> list[Action]:
        """Return all actions. The base without a budget is the first."""
        budgets = (None, *sorted(self.kv_budgets, reverse=True))
        return [Action(name, budget) for name in self.variants for budget in budgets]

    def loss(self, action: Action, tokens: int, relative: float = 1.0) -> float | None:
        """Return the predicted loss in nats per token; None if it was never measured.

        `tokens` is what the cache would come to hold without a budget. `relative` is the variant's
        expected loss on this prompt over its mean loss.
        """
        loss = 0.0 if action.variant == BASE else self.variant_loss.get(action.variant)
        loss = None if loss is None else relative * loss
        return add_kv_loss(loss, self.kv_loss, action.kv_budget, tokens)
