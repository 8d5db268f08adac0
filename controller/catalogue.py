"""All actions of a server, and their measured losses."""

from collections.abc import Mapping
from dataclasses import dataclass

from policies import Action
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

    def variant_losses(self, relative: Mapping[str, float]) -> dict[str, float | None]:
        """Return each variant's predicted loss in nats per token; None if it was never measured.

        `relative` holds a variant's expected loss on this prompt over its mean loss, where that is
        not 1.
        """
        losses: dict[str, float | None] = {}
        for name in self.variants:
            loss = 0.0 if name == BASE else self.variant_loss.get(name)
            losses[name] = None if loss is None else relative.get(name, 1.0) * loss
        return losses
