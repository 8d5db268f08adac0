"""The precisions in which weights can be served."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
BITS = {"int8": 8, "int4": 4}
"""Bits of the precisions that the native kernels serve."""
