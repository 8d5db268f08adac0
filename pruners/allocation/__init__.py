"""How a budget is spread over layers."""

from pruners.allocation.base import AllocationError
from pruners.allocation.by_kl import Library, ffn_levels, kv_levels, measured
from pruners.allocation.curves import Curve, eliminated, predicted, summed
from pruners.allocation.greedy import Cost, greedy
from pruners.allocation.latency import Latency
from pruners.allocation.schedules import increasing, uniform
from pruners.allocation.search import Found, search
from pruners.allocation.standardised import standardised

__all__ = [
    "AllocationError",
    "Cost",
    "Curve",
    "Found",
    "Latency",
    "Library",
    "eliminated",
    "ffn_levels",
    "greedy",
    "increasing",
    "kv_levels",
    "measured",
    "predicted",
    "search",
    "standardised",
    "summed",
    "uniform",
]
