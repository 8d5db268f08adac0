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
from pruners.allocation.greedy import AllocationProblem, allocate_greedily
from pruners.support.progress import track
from pruners.variant import VariantSpec

# How errors that were measured one at a time may add up: raised to a power, weighed more in the
# late half of the model, weighed more in attention. Few dimensions for a few dozen candidates.
_DIMENSIONS = {"power": (0.7, 1.5), "late": (-1.0, 1.0), "attention": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """`trials` candidates are scored in all, sampled by `seed`.

    `storage` is an Optuna URL such as `sqlite:///search.db`, from which an interrupted search goes
    on; without it the search is kept in memory.
    """

    trials: int
    seed: int = 0
    storage: str | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best variant and its loss, the loss of the plain greedy allocation, and the trials."""

    spec: VariantSpec
    loss: float
    greedy_loss: float
    trials: int


def search_widths(
    problem: AllocationProblem,
    loss: Callable[[VariantSpec], float],
    options: SearchOptions,
    progress: Progress | None = None,
) -> SearchResult:
    """Return the variant of least `loss` among greedy allocations by reweighted errors.

    Each candidate reweights the cached errors and fills the budget by `allocate_greedily`, so that
    every one meets it; the first is the plain greedy one. `loss` scores a variant: the
    `additive_loss` of its curves, or a measured one. Candidates come from the tree-structured
    Parzen estimator of Optuna (Akiba et al. 2019, arXiv 1907.10902). Raises `AllocationError`
    without Optuna, for a budget that cannot be met, or if the storage holds a search over other
    curves or another budget.
    """
    greedy_loss = loss(allocate_greedily(problem))
    optuna = _import_optuna()
    study = _open_study(optuna, problem, options)
    if not study.trials:
        study.enqueue_trial({"power": 1.0, "late": 0.0, "attention": 0.0})

    def candidate(weights: dict[str, float]) -> VariantSpec:
        curves = [_reweighted(curve, problem.curves, weights) for curve in problem.curves]
        return allocate_greedily(replace(problem, curves=curves))

    def objective(trial: Any) -> float:  # noqa: ANN401
        return loss(candidate({n: trial.suggest_float(n, *r) for n, r in _DIMENSIONS.items()}))

    done = _count_scored(optuna, study)
    for _ in track(range(options.trials - done), "Searching widths", progress):
        study.optimize(objective, n_trials=1)
    best, scored = candidate(study.best_params), _count_scored(optuna, study)
    return SearchResult(best, study.best_value, greedy_loss, scored)


def _reweighted(curve: Curve, curves: Sequence[Curve], weights: Mapping[str, float]) -> Curve:
    depth = 2 * curve.layer / max(1, max(other.layer for other in curves)) - 1
    factor = math.exp(weights["late"] * depth)
    if curve.part == "attention":
        factor *= math.exp(weights["attention"])
    return replace(curve, errors=tuple(factor * e ** weights["power"] for e in curve.errors))


def _open_study(optuna: Any, problem: AllocationProblem, options: SearchOptions) -> Any:  # noqa: ANN401
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=options.storage, study_name="allocation", load_if_exists=True, direction="minimize"
    )
    identity = _identity(problem)
    if study.user_attrs.get("problem", identity) != identity:
        raise AllocationError(
            f"{options.storage} holds a search over other curves or another budget"
        )
    study.set_user_attr("problem", identity)
    # A resumed sampler must not draw its first candidates again.
    study.sampler = optuna.samplers.TPESampler(seed=options.seed + len(study.trials))
    return study


def _count_scored(optuna: Any, study: Any) -> int:  # noqa: ANN401
    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _identity(problem: AllocationProblem) -> str:
    text = repr((problem.start, list(problem.curves), problem.budget))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _import_optuna() -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise AllocationError(
            "the search needs Optuna: install it with `pip install 'trimtab[search]'`"
        ) from error
