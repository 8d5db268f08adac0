"""Every setting of the server, from the command line or `TRIMTAB_*` environment variables."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pruners.support.errors import UserError
from server.engine.config import DEFAULT_KV_BUDGETS, EngineConfig, ModelConfig
from server.engine.loading.source import DEFAULT_MODEL
from server.engine.precision import Precision

PREFIX = "TRIMTAB_"
ELSEWHERE = ("TRIMTAB_CACHE", "TRIMTAB_NATIVE", "TRIMTAB_ISA")
"""Variables that are read where they are used: where models lie, and which kernels run."""


GROUPS = {
    "Model and address": "model",
    "Engine": "device",
    "Controller": "policy",
    "Watching": "shadow_share",
    "Limits": "max_body_bytes",
}
"""Titles of groups of settings, and the first setting of each."""


class SettingsError(UserError):
    """A setting that is wrong or does not fit the model. One clear line."""


class Settings(BaseSettings):
    """Sizes in tokens or bytes, times in seconds or, where the name says so, milliseconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    model: str = DEFAULT_MODEL
    """The model: a Hugging Face id, a folder, a GGUF file, or the default's name."""
    artefact: Path | None = None
    """Folder by `trimtab build`. Without: the shipped one, if it was built for this model."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes any that is free."""
    api_key: str | None = None
    """Key that every request must send as `Authorization: Bearer KEY`. Without: no key."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names that the server may be called by, with or without a port, separated by commas."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is computed: `auto` takes the GPU if PyTorch sees one."""
    weights: Precision = "auto"
    """How weights are kept: `auto` (as the source has them), `fp32`, `bf16`, `int8` or `int4`."""
    threads: int | None = Field(default=None, ge=1)
    """Processor threads of the model. Without: all cores."""
    context: int | None = Field(default=None, ge=64)
    """Longest prompt and answer together, in tokens. Without: the model's own maximum."""
    max_running: int = Field(default=16, ge=1, le=256)
    """Answers written at once."""
    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait; more get 503."""
    max_waiting_tokens: int = Field(default=131_072, ge=1)
    """Prompt tokens that may wait; more get 503."""
    step_tokens: int = Field(default=256, ge=16)
    """Tokens processed in one step of the engine, over all requests."""
    kv_tokens: int | None = Field(default=None, ge=512)
    """Size of the KV cache in tokens. Without: a quarter of the free memory at most."""
    kv_cache: Literal["auto", "int8"] = "auto"
    """Type of the KV cache: `int8` halves it, and needs weights in 4 or 8 bits."""
    kv_scorer: str = "streaming"
    """Which tokens a KV budget keeps: a name from `pruners.kv`."""
    kv_budgets: Annotated[tuple[Annotated[int, Field(ge=32)], ...], NoDecode] = DEFAULT_KV_BUDGETS
    """KV budgets that the controller may choose, in tokens, as a JSON list."""
    speculate: bool = True
    """Guess tokens ahead and verify them. Never changes what is written."""

    policy: str = "rule"
    """`rule`, `random`, `static:VARIANT`, `refusing:VARIANT`, or a folder by `train-policy`."""
    force: bool = False
    """Serve a trained policy that did not beat the rule."""
    explore: float = Field(default=0.0, ge=0, le=1)
    """Share of choices left to chance, for `trimtab estimate` to learn from."""
    ttft_ms: float | None = Field(default=2000.0, gt=0)
    """Objective for the first token, in milliseconds, of requests that name none."""
    tpot_ms: float | None = Field(default=None, gt=0)
    """Objective for each further token, in milliseconds, of requests that name none."""
    max_loss: float | None = Field(default=None, ge=0)
    """Most that an answer may lose, in nats per token, where the request does not say."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """Objective for the whole answer, in milliseconds, of requests that name none."""
    refuse_late: bool = False
    """Answer 503 where the queue is too long for `ttft_ms`, large requests first."""
    save_energy: bool = False
    """Answer as if the battery were low, always."""
    analyzer: Literal["patterns", "nltk", "spacy"] = "patterns"
    """What reads prompts. A backend without time falls back to the quicker ones."""
    dwell_seconds: float = Field(default=1.0, ge=0)
    """How long a variant is kept after a change, for requests of one kind."""
    narrow: bool = False
    """Any answer may get narrower midway, not only those that say `narrow`."""

    shadow_share: float = Field(default=0.05, ge=0, le=1)
    """Share of answers that the base reads again in idle moments."""
    audit_log: Path | None = None
    """File for a line of JSON about every decision. Without: none is written."""
    audit_max_bytes: int = Field(default=64 * 2**20, ge=4096)
    """Size at which the audit log begins a new file; five old ones are kept."""
    audit_prompts: bool = False
    """Whether the audit log may hold the texts of prompts."""
    telemetry_seconds: float = Field(default=0.5, gt=0)
    """Time between readings of the machine."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest body of a request; a larger one gets 413."""
    max_answers: int = Field(default=64, ge=1)
    """Prompts times `n` in one call."""
    max_connections: int | None = Field(default=None, ge=1)
    """Connections at once. Without: 10,000, or what the limit on open files allows."""
    header_seconds: float = Field(default=10.0, gt=0)
    """Time for the headers of a request to come in."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Time for the body of a request to come in."""
    stall_seconds: float | None = Field(default=None, gt=0)
    """Time of one step until `/health` says 503. Without: 5 s, or ten full steps if longer."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Time that answers on their way have to end when the server is stopped."""

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

    def to_model_config(self) -> ModelConfig:
        """Return the settings that say which model is loaded, and how."""
        return ModelConfig(
            self.model, self.artefact, self.weights, self.device, self.context, self.threads
        )

    def to_engine_config(self) -> EngineConfig:
        """Return the settings that say how the engine batches requests."""
        return EngineConfig(
            self.max_running, self.step_tokens, self.kv_tokens, self.kv_cache, self.speculate
        )


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
