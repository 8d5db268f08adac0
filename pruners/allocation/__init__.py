"""How a budget is spread over the blocks of a model."""

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import (
    Curve,
    additive_loss,
    curves_of_elimination,
    curves_of_summed_scores,
)
from pruners.allocation.greedy import AllocationProblem, CostFunction, allocate_greedily
from pruners.allocation.latency import LatencyCost
from pruners.allocation.measured_curves import ffn_levels, kv_levels, measure_curves
from pruners.allocation.schedules import increasing_widths, uniform_widths
from pruners.allocation.search import SearchOptions, SearchResult, search_widths
from pruners.allocation.standardised import standardised_widths

__all__ = [
    "AllocationError",
    "AllocationProblem",
    "CostFunction",
    "Curve",
    "LatencyCost",
    "SearchOptions",
    "SearchResult",
    "additive_loss",
    "allocate_greedily",
    "curves_of_elimination",
    "curves_of_summed_scores",
    "ffn_levels",
    "increasing_widths",
    "kv_levels",
    "measure_curves",
    "search_widths",
    "standardised_widths",
    "uniform_widths",
]
