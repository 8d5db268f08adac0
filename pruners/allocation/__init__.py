"""How a budget is spread over layers."""

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import Curve, eliminated, measured, predicted, summed
from pruners.allocation.greedy import Cost, greedy
from pruners.allocation.schedules import increasing, uniform
from pruners.allocation.search import Found, search
from pruners.allocation.standardised import standardised

__all__ = [
    "AllocationError",
    "Cost",
    "Curve",
    "Found",
    "eliminated",
    "greedy",
    "increasing",
    "measured",
    "predicted",
    "search",
    "standardised",
    "summed",
    "uniform",
]
