"""Every setting of the server, from the command line or `TRIMTAB_*` environment variables."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pruners.errors import UserError
from server.engine.precision import Precision
from server.engine.source import DEFAULT_MODEL

PREFIX = "TRIMTAB_"
ELSEWHERE = ("TRIMTAB_CACHE", "TRIMTAB_NATIVE", "TRIMTAB_ISA")
"""Variables that are read where they are used: where models lie, and which kernels run."""


class SettingsError(UserError):
    """A setting that is wrong or does not fit the model. One clear line."""


class Settings(BaseSettings):
    """Sizes in tokens or bytes, times in seconds or, where the name says so, milliseconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", allow_inf_nan=False)

    model: str = DEFAULT_MODEL
    artefact: Path | None = None  # None: the shipped one, if it was built for this model
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: str | None = None
    allowed_hosts: Annotated[
        tuple[str, ...], NoDecode
    ] = ()  # names to be called by, with or without a port

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
    kv_budgets: Annotated[tuple[Annotated[int, Field(ge=32)], ...], NoDecode] = (1024, 512, 256)

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
    max_connections: int | None = Field(default=None, ge=1)  # None: as files may be opened
    header_seconds: float = Field(default=10.0, gt=0)  # for a request's headers to come in
    body_seconds: float = Field(default=30.0, gt=0)
    # Of one step, until `/health` says 503. None: 5 s, or ten full steps where that is longer.
    stall_seconds: float | None = Field(default=None, gt=0)
    drain_seconds: float = Field(default=30.0, ge=0)
    telemetry_seconds: float = Field(default=0.5, gt=0)

    @field_validator("kv_budgets", mode="before")
    @classmethod
    def _budgets(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError("expected a JSON list such as [1024, 512]") from error

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and any(not n or "/" in n or " " in n for n in names):
            raise ValueError("expected names such as models.example,localhost:3000")
        return names

    @field_validator("api_key")
    @classmethod
    def _key_can_be_sent(cls, key: str | None) -> str | None:
        if key is not None and (not key or key != key.strip() or not key.isprintable()):
            raise ValueError("must not be empty, nor hold space at its ends or control characters")
        return key

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.step_tokens < self.max_running:
            raise ValueError(
                f"step_tokens ({self.step_tokens}) must be at least max_running "
                f"({self.max_running})"
            )
        return self


class JobSettings(Settings):
    """What an offline job says, and defaults. No environment variable changes a result."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the source of the constructor's arguments alone."""
        return (init_settings,)


def read_settings(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings by a command's flags (None: not given) and the environment.

    `environ` is the process's own. Raises `SettingsError`, which names the flag or the variable.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    variables = {name.upper(): value for name, value in environ.items()}
    for name in Settings.model_fields:
        value = given[name] if name in given else variables.get(PREFIX + name.upper())
        if value == "":
            raise SettingsError(f"{_called(name, given)} is empty: leave it out, or give a value")
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            what = f"{_called(str(first['loc'][0]), given)}: {what[:1].lower()}{what[1:]}"
        raise SettingsError(what) from error


def _called(name: str, given: Mapping[str, Any]) -> str:
    return f"--{name.replace('_', '-')}" if name in given else PREFIX + name.upper()


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each `TRIMTAB_*` variable that nothing reads."""
    known = [name.upper() for name in Settings.model_fields]
    known += [name.removeprefix(PREFIX) for name in ELSEWHERE]
    lines = []
    for name in sorted(environ):
        rest = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and rest not in known:
            near = difflib.get_close_matches(rest, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            lines.append(f"{name} is no setting and is ignored{hint}")
    return lines
