"""Every action there is, with what was measured of it."""

from dataclasses import dataclass

from policies import Action
from pruners.variant import BASE, VariantSpec


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The variants (base first), the KV budgets on offer in tokens, and their measured losses.

    Losses are in nats per token against the base on held-out text. A budget's loss adds to a
    variant's; what was never measured is absent.
    """

    variants: dict[str, VariantSpec]
    kv_budgets: tuple[int, ...]
    variant_loss: dict[str, float]
    kv_loss: dict[int, float]

    def actions(self) -> list[Action]:
        """All actions; the base without a budget comes first."""
        budgets = (None, *sorted(self.kv_budgets, reverse=True))
        return [Action(name, budget) for name in self.variants for budget in budgets]

    def loss(self, action: Action, tokens: int, relative: float = 1.0) -> float | None:
        """Predicted loss for an answer whose cache would come to hold `tokens` without a budget.

        `relative` is what is expected of this prompt over the variant's mean.
        """
        known = 0.0 if action.variant == BASE else self.variant_loss.get(action.variant)
        known = None if known is None else relative * known
        if action.kv_budget is None or tokens <= action.kv_budget:
            return known
        extra = self.kv_loss.get(action.kv_budget)
        return None if known is None or extra is None else known + extra
