"""A resumable search around the greedy allocation."""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import Progress

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import Curve
from pruners.allocation.greedy import Cost, greedy
from pruners.progress import tracked
from pruners.variant import VariantSpec

_RANGE = 4.0  # how much more or less than its cached error a block may be taken to matter


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
    """Weighs each block's cached errors anew, lets `greedy` fill the budget, keeps the best.

    So every candidate meets the budget, and none is pruned: `loss` is `predicted(curves)` or a
    better model of how errors add up. Tree-structured Parzen estimator of Optuna (Akiba et al.
    2019, arXiv 1907.10902); the first candidate is plain greedy. With `storage`, an Optuna URL such
    as `sqlite:///search.db`, an interrupted search goes on until it has `trials` in all.
    Raises `AllocationError` without Optuna, for a budget that cannot be met, or if the storage
    holds a search over other curves or another budget.
    """
    plain = loss(greedy(start, curves, cost, budget))
    optuna = _optuna()
    names = [f"{curve.layer}.{curve.part}" for curve in curves]
    study = _study(optuna, storage, _identity(start, curves, budget), seed)
    if not study.trials:
        study.enqueue_trial(dict.fromkeys(names, 1.0))

    def candidate(weights: dict[str, float]) -> VariantSpec:
        weighed = [
            replace(curve, errors=tuple(weights[name] * error for error in curve.errors))
            for name, curve in zip(names, curves, strict=True)
        ]
        return greedy(start, weighed, cost, budget)

    def objective(trial: Any) -> float:  # noqa: ANN401
        return loss(
            candidate(
                {name: trial.suggest_float(name, 1 / _RANGE, _RANGE, log=True) for name in names}
            )
        )

    done = _scored(optuna, study)
    for _ in tracked(range(trials - done), "Searching widths", progress):
        study.optimize(objective, n_trials=1)
    return Found(candidate(study.best_params), study.best_value, plain, _scored(optuna, study))


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
