"""Off-policy evaluation: what another policy would have been worth on logged traffic.

Some of the logged choices must have been random. Self-normalised inverse propensity scores
(Swaminathan and Joachims 2015) and the doubly robust estimate (Dudik et al. 2011, arXiv 1103.4601),
with clipped weights. Both look at single decisions: the effect of a choice on the requests behind
is not in the log.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.explore import choice_label
from policies.features import REFUSE
from policies.observation import Observation, Policy, read_observation
from pruners.data.readers import parse_json, read_raw_lines
from pruners.support.errors import UserError

_RESAMPLES = 1000


class LogError(UserError):
    """An audit log that nothing can be estimated from. The message is one line."""


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision of a log.

    `label` is the choice that was made, `propensity` (0..1] its probability, `value` what the
    request was worth.
    """

    observation: Observation
    label: str
    propensity: float
    value: float


@dataclass(frozen=True, slots=True)
class OffPolicyEstimate:
    """The estimated mean value of a request, with 95 % bootstrap intervals over decisions.

    `decisions` is their number, `effective` the effective sample size of the clipped weights,
    `largest` the largest weight before clipping.
    """

    decisions: int
    snips: float
    snips_95: tuple[float, float]
    doubly_robust: float
    doubly_robust_95: tuple[float, float]
    effective: float
    largest: float


@dataclass(frozen=True, slots=True)
class DecisionLog:
    """The decisions of audit logs. `torn` lines could not be read and were left out."""

    decisions: list[LoggedDecision]
    torn: int


def read_log(paths: Iterable[Path], lost: float = -0.5) -> DecisionLog:
    """Return the decisions of audit logs, without those of pinned requests.

    A request that kept its objectives is worth exp(-loss) with the loss that the shadow measured,
    or with the predicted one if it was not measured. Any other request is worth `lost`. Lines that
    a crash or a full disk has torn are counted and left out. Raises `LogError` or `ReadError`.
    """
    answers: list[tuple[str, dict[str, Any]]] = []
    measured: dict[str, float] = {}
    torn = 0
    for path in paths:
        whole = False
        for number, line in read_raw_lines(path):
            place = f"{path} line {number}"
            try:
                entry = parse_json(line.decode())
            except ValueError:
                torn += 1
                continue
            whole = True
            with _naming_place(place):
                if entry["kind"] == "shadow":
                    measured[entry["answer"]] = float(entry["kl"])
                elif entry["reason"] != "pinned":
                    answers.append((place, entry))
        if torn and not whole:
            raise LogError(f"{path} is no audit log: none of its lines can be read")
    decisions = []
    for place, entry in answers:
        with _naming_place(place):
            decisions.append(_logged_decision(entry, measured.get(entry["answer"]), lost))
    return DecisionLog(decisions, torn)


@contextmanager
def _naming_place(place: str) -> Iterator[None]:
    """Raise what is wrong with a line as a `LogError` that names the line."""
    try:
        yield
    except KeyError as error:
        raise LogError(f"{place} is not of this version's audit log: no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise LogError(f"{place} is not of an audit log: {error}") from error


def _logged_decision(entry: dict[str, Any], measured: float | None, lost: float) -> LoggedDecision:
    observation, outcome = read_observation(entry["observation"]), entry["outcome"]
    refused = entry["reason"] in ("late", "floor")
    label = REFUSE if refused else str(entry["action"])
    wanted, value = observation.objectives, lost
    met = outcome["finish_reason"] in ("stop", "length") and all(
        bound is None or (outcome[name] is not None and outcome[name] <= bound)
        for name, bound in (
            ("ttft", wanted.ttft),
            ("tpot", wanted.tpot if outcome.get("output_tokens", 0) > 1 else None),
            ("seconds", wanted.deadline),
        )
    )
    if met:
        loss = entry["predicted"]["loss"] if measured is None else measured
        value = 0.0 if loss is None else math.exp(-float(loss))  # as in `_predicted_value`
    propensity = float(entry["propensities"][label])
    if not 0 < propensity <= 1:
        raise ValueError(f"a propensity of {propensity:g}")
    return LoggedDecision(observation, label, propensity, value)


def estimate_value(
    logged: Sequence[LoggedDecision],
    policy: Policy,
    lost: float = -0.5,
    clip: float = 20.0,
    seed: int = 0,
) -> OffPolicyEstimate:
    """Estimate what `policy` would have been worth per request.

    `lost` is the value of a request that is lost; weights are clipped at `clip`. The doubly robust
    estimate takes the controller's predictions as its model of the value. Raises `LogError` if no
    logged decision is one that the policy would make.
    """
    labels = [choice_label(*policy.choose(one.observation)) for one in logged]
    raw = np.array(
        [(label == one.label) / one.propensity for label, one in zip(labels, logged, strict=True)]
    )
    if not raw.any():
        raise LogError("the log has no decision that this policy would make; log with chance")
    weights = np.minimum(raw, clip)
    value = np.array([one.value for one in logged])
    target_model = np.array(
        [_predicted_value(one, label, lost) for one, label in zip(logged, labels, strict=True)]
    )
    logged_model = np.array([_predicted_value(one, one.label, lost) for one in logged])
    robust = target_model + weights * (value - logged_model)
    drawn = np.random.default_rng(seed).integers(len(logged), size=(_RESAMPLES, len(logged)))
    totals = weights[drawn].sum(1)
    snips = (weights * value)[drawn].sum(1)[totals > 0] / totals[totals > 0]
    return OffPolicyEstimate(
        decisions=len(logged),
        snips=float(weights @ value / weights.sum()),
        snips_95=_interval(snips),
        doubly_robust=float(robust.mean()),
        doubly_robust_95=_interval(robust[drawn].mean(1)),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
        largest=float(raw.max()),
    )


def _predicted_value(one: LoggedDecision, label: str, lost: float) -> float:
    """Return the value of a choice by the controller's predictions."""
    if label == REFUSE:
        return lost
    candidate = next((c for c in one.observation.candidates if c.action.label == label), None)
    if candidate is None or not candidate.keeps(one.observation.objectives):
        return lost
    return 0.0 if candidate.loss is None else math.exp(-candidate.loss)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
