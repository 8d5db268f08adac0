"""Policies: from an observation to an action, and nothing else."""

from policies.observation import (
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
    "Action",
    "Candidate",
    "Constraint",
    "Objectives",
    "Observation",
    "Policy",
    "Reason",
    "RulePolicy",
    "RuleSettings",
    "StaticPolicy",
    "read_observation",
]
