"""In how many bits weights are served."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
BITS = {"int8": 8, "int4": 4}
