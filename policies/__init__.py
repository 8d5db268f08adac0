"""Policies: from an observation to an action, and nothing else."""

from policies.explore import ExploringPolicy, label_of, propensities
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
    "label_of",
    "propensities",
    "read_observation",
]
