"""From predictions to candidates: the formulas that server and simulation share."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from policies.observation import Action, Candidate, Constraint


class RequestTokens(NamedTuple):
    """Tokens of a request's prompt, and those that its answer is expected to have."""

    prompt: int
    output: int

    @property
    def total(self) -> int:
        """Tokens that the cache comes to hold without a budget."""
        return self.prompt + self.output


@dataclass(frozen=True, slots=True)
class VariantForecast:
    """What is predicted for one request by one choice (variant and reader), whatever its budget.

    `ttft`: seconds to the first token, with the time in the queue. `ttft_uncached`: the same if no
    part of the prompt is in the prefix cache, which a request with a KV budget cannot use. `tpot`:
    seconds of a decode step without this request's own cache, of which each token adds
    `tpot_per_cached` seconds. `cost`: the request's work over its work by the base.
    """

    ttft: float
    ttft_uncached: float
    tpot: float
    tpot_per_cached: float
    cost: float


def build_candidates(
    actions: Iterable[Action],
    forecasts: Mapping[str, VariantForecast],
    tokens: RequestTokens,
    loss_of: Callable[[Action], float | None],
    blocked_by: Callable[[int, float | None], Constraint | None],
    keep_tasks: Collection[str],
) -> tuple[Candidate, ...]:
    """Return a candidate for each action.

    `forecasts` are by choice (`Action.choice`); `loss_of` returns an action's predicted loss in
    nats per token, or None; `blocked_by` returns what forbids an action, from its cached tokens and
    its loss. `keep_tasks` are the choices that were measured to keep the reading tasks, the base
    among them; a budget that evicts anything does not.
    """
    candidates, total = [], tokens.total
    for action in actions:
        choice, budget = action.choice, action.kv_budget
        forecast = forecasts[choice]
        cached, loss = total if budget is None else min(total, budget), loss_of(action)
        ttft = forecast.ttft if budget is None else forecast.ttft_uncached
        tpot = forecast.tpot + cached * forecast.tpot_per_cached
        candidates.append(
            Candidate(
                action=action,
                loss=loss,
                cost=forecast.cost,
                ttft=ttft,
                tpot=tpot,
                total=ttft + tpot * tokens.output,
                blocked=blocked_by(cached, loss),
                keeps_tasks=cached == total and choice in keep_tasks,
            )
        )
    return tuple(candidates)


def add_reader_loss(loss: float | None, reader_loss: float | None) -> float | None:
    """Return a variant's loss plus that of a reader, in nats per token.

    Losses of writing, reading and evicting are taken to add up. None if one of the two was never
    measured.
    """
    return None if loss is None or reader_loss is None else loss + reader_loss


def add_kv_loss(
    loss: float | None, kv_loss: Mapping[int, float], kv_budget: int | None, tokens: int
) -> float | None:
    """Return a choice's loss plus that of a KV budget, in nats per token.

    The budget costs nothing for a cache of up to `kv_budget` tokens; `tokens` is what the cache
    would hold without it. None if one of the two losses was never measured.
    """
    if loss is None or kv_budget is None or tokens <= kv_budget:
        return loss
    extra = kv_loss.get(kv_budget)
    return None if extra is None else loss + extra


def check_constraints(
    cached: int, free: int, loss: float | None, max_loss: float | None
) -> Constraint | None:
    """Return what forbids an action: its loss (nats per token) or its cache (tokens); or None.

    `free` tokens of the KV cache are not promised to other requests. A loss of 0 is always
    allowed, an unmeasured one (None) only without a `max_loss`.
    """
    if max_loss is not None and loss != 0.0 and (loss is None or loss > max_loss):
        return Constraint.QUALITY_FLOOR
    return Constraint.KV_MEMORY if cached > free else None


def queue_seconds(requests: int, slots: int, row_steps: float, step: float) -> float:
    """Return the predicted seconds until a slot is free, without the reading of prompts.

    `requests` are running and waiting, at least `slots` of them; together they have `row_steps`
    tokens left to write, and a full batch writes `slots` tokens in a step of `step` seconds. The
    last `slots` requests share the rows of the batch while they finish; only one of them has to end
    before the next request starts, hence the factor 1 - (slots - 1) / requests.
    """
    return step * row_steps * (1 - (slots - 1) / requests) / slots
