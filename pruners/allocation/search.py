"""A resumable search around the greedy allocation."""

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import Progress

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import Curve
from pruners.allocation.greedy import Cost, greedy
from pruners.support.progress import track
from pruners.variant import VariantSpec

# How errors measured one at a time may add up: as a power, more in one half of the model than in
# the other, more in attention than in MLPs. Few enough for a few dozen candidates to cover.
_DIMENSIONS = {"power": (0.7, 1.5), "late": (-1.0, 1.0), "attention": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Found:
    """The best variant, its loss, that of plain `greedy`, and how many candidates were scored."""

    spec: VariantSpec
    loss: float
    greedy_loss: float
    trials: int


def search(
    start: VariantSpec,
    curves: Sequence[Curve],
    cost: Cost,
    budget: float,
    loss: Callable[[VariantSpec], float],
    trials: int,
    seed: int = 0,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Found:
    """Weighs the cached errors anew, lets `greedy` fill the budget, keeps the best.

    So every candidate meets the budget, and none is pruned: `loss` is `predicted(curves)` or a
    better model of how errors add up. Tree-structured Parzen estimator of Optuna (Akiba et al.
    2019, arXiv 1907.10902); the first candidate is plain greedy. With `storage`, an Optuna URL such
    as `sqlite:///search.db`, an interrupted search goes on until it has `trials` in all.
    Raises `AllocationError` without Optuna, for a budget that cannot be met, or if the storage
    holds a search over other curves or another budget.
    """
    plain = loss(greedy(start, curves, cost, budget))
    optuna = _optuna()
    study = _study(optuna, storage, _identity(start, curves, budget), seed)
    if not study.trials:
        study.enqueue_trial({"power": 1.0, "late": 0.0, "attention": 0.0})

    def candidate(weights: dict[str, float]) -> VariantSpec:
        return greedy(start, [_weighed(curve, curves, weights) for curve in curves], cost, budget)

    def objective(trial: Any) -> float:  # noqa: ANN401
        return loss(candidate({n: trial.suggest_float(n, *r) for n, r in _DIMENSIONS.items()}))

    done = _scored(optuna, study)
    for _ in track(range(trials - done), "Searching widths", progress):
        study.optimize(objective, n_trials=1)
    return Found(candidate(study.best_params), study.best_value, plain, _scored(optuna, study))


def _weighed(curve: Curve, curves: Sequence[Curve], weights: Mapping[str, float]) -> Curve:
    depth = 2 * curve.layer / max(1, max(other.layer for other in curves)) - 1
    factor = math.exp(weights["late"] * depth)
    if curve.part == "attention":
        factor *= math.exp(weights["attention"])
    return replace(curve, errors=tuple(factor * e ** weights["power"] for e in curve.errors))


def _study(optuna: Any, storage: str | None, identity: str, seed: int) -> Any:  # noqa: ANN401
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name="allocation", load_if_exists=True, direction="minimize"
    )
    known = study.user_attrs.get("problem", identity)
    if known != identity:
        raise AllocationError(f"{storage} holds a search over other curves or another budget")
    study.set_user_attr("problem", identity)
    # A resumed sampler must not draw its first candidates again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _scored(optuna: Any, study: Any) -> int:  # noqa: ANN401
    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _identity(start: VariantSpec, curves: Sequence[Curve], budget: float) -> str:
    return hashlib.sha256(repr((start, list(curves), budget)).encode()).hexdigest()[:32]


def _optuna() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise AllocationError(
            "the search needs Optuna: install it with `pip install 'trimtab[search]'`"
        ) from error
