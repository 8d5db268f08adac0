"""Policies: pure functions from an observation to an action; estimators, simulation, training."""

from policies.explore import ExploringPolicy, choice_label, propensities
from policies.learned import LearnedPolicy
from policies.observation import (
    REFUSED,
    Action,
    Candidate,
    Constraint,
    Objectives,
    Observation,
    Policy,
    Reason,
    read_observation,
)
from policies.rule import RulePolicy, RuleSettings
from policies.static import StaticPolicy

__all__ = [
    "REFUSED",
    "Action",
    "Candidate",
    "Constraint",
    "ExploringPolicy",
    "LearnedPolicy",
    "Objectives",
    "Observation",
    "Policy",
    "Reason",
    "RulePolicy",
    "RuleSettings",
    "StaticPolicy",
    "choice_label",
    "propensities",
    "read_observation",
]
