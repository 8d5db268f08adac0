"""Every setting of the server, from the command line or `TRIMTAB_*` environment variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pruners.errors import UserError
from server.engine.precision import Precision
from server.engine.source import DEFAULT_MODEL


class SettingsError(UserError):
    """A setting that does not fit the model. One clear line."""


class Settings(BaseSettings):
    """Sizes in tokens or bytes, times in seconds or, where the name says so, milliseconds."""

    model_config = SettingsConfigDict(env_prefix="TRIMTAB_", extra="forbid")

    model: str = DEFAULT_MODEL
    artefact: Path | None = None  # None: the shipped one, if it was built for this model
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: str | None = None

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if PyTorch sees one
    weights: Precision = "auto"
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=64)
    max_running: int = Field(default=16, ge=1, le=256)
    max_waiting: int = Field(default=256, ge=0)
    max_waiting_tokens: int = Field(default=131_072, ge=1)  # of prompts in the line
    step_tokens: int = Field(default=256, ge=16)
    kv_tokens: int | None = Field(default=None, ge=512)  # None: from the memory that is free
    kv_cache: Literal["auto", "int8"] = "auto"  # int8 needs weights in 4 or 8 bits
    kv_scorer: str = "streaming"  # which tokens a KV budget keeps
    kv_budgets: tuple[Annotated[int, Field(ge=32)], ...] = (1024, 512, 256)

    speculate: bool = True  # guess tokens from the text so far; never changes what is written

    policy: str = "rule"  # or random, static:VARIANT, or a folder by `train-policy`
    force: bool = False  # serve a trained policy that did not beat the rule
    explore: float = Field(
        default=0.0, ge=0, le=1
    )  # share of choices left to chance, to learn from
    ttft_ms: float | None = Field(default=2000.0, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    max_loss: float | None = Field(default=None, ge=0)
    deadline_ms: float | None = Field(default=None, gt=0)
    refuse_late: bool = False  # 503 where the queue is too long for ttft_ms, large requests first
    save_energy: bool = False  # always answer as if the battery were low

    analyzer: Literal["patterns", "nltk", "spacy"] = "patterns"  # what reads prompts
    dwell_seconds: float = Field(default=1.0, ge=0)  # a variant is kept for, after a change
    narrow: bool = False  # answers may get narrower midway, when the host comes under pressure
    shadow_share: float = Field(default=0.05, ge=0, le=1)  # of answers, read again by the base
    audit_log: Path | None = None  # JSON lines of every decision
    audit_max_bytes: int = Field(default=64 * 2**20, ge=4096)
    audit_prompts: bool = False  # whether their texts may be kept there

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    max_answers: int = Field(default=64, ge=1)  # prompts times `n` in one call
    drain_seconds: float = Field(default=30.0, ge=0)
    telemetry_seconds: float = Field(default=0.5, gt=0)
