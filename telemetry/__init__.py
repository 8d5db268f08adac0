"""Readings of the host, its battery and its GPUs, and the Prometheus metrics."""

from telemetry.collector import TelemetryCollector
from telemetry.finished_request import FinishedRequest
from telemetry.metrics import ServerMetrics
from telemetry.reader import Reader
from telemetry.registry import MetricsRegistry
from telemetry.sampler import Sampler, default_sampler
from telemetry.snapshot import GpuReadings, Reading, Snapshot, missing, present
from telemetry.vllm_metrics import VllmMetrics

__all__ = [
    "FinishedRequest",
    "GpuReadings",
    "MetricsRegistry",
    "Reader",
    "Reading",
    "Sampler",
    "ServerMetrics",
    "Snapshot",
    "TelemetryCollector",
    "VllmMetrics",
    "default_sampler",
    "missing",
    "present",
]
