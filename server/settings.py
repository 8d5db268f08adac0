"""Every setting of the server, with its default, its limits and its description.

A setting is an option of `trimtab serve`, a `TRIMTAB_*` environment variable, and a name in a
configuration file; `server.settings_sources` reads these. The descriptions are the help of the
command and the text of docs/configuration.md.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pruners.support.errors import UserError
from server.api.access.hosts import ANY_ORIGIN, split_origins
from server.api.access.keys import hashed_key
from server.engine.config import DEFAULT_KV_BUDGETS, EngineConfig, ModelConfig
from server.engine.loading.source import DEFAULT_MODEL
from server.engine.precision import Precision

PREFIX = "TRIMTAB_"
"""What the names of all environment variables of the server begin with."""

_FIRST_OF_GROUP = {
    "Model and address": "model",
    "Access": "api_key",
    "Engine": "device",
    "Controller": "policy",
    "Monitoring": "shadow_share",
    "Limits": "max_body_bytes",
}


class SettingsError(UserError):
    """A setting is wrong, or does not fit the model. The message is one line."""


class Settings(BaseSettings):
    """The settings of a server.

    Sizes are in tokens, or in bytes where the name says so. Times are in seconds, or in
    milliseconds where the name ends in `_ms`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    model: str = DEFAULT_MODEL
    """The model: `OWNER/NAME[:QUANT]` of the Hugging Face hub, `ollama:NAME[:TAG]`, a folder, a
    GGUF file, or the name of the default model."""
    artefact: Path | None = None
    """Folder with the variants, by `trimtab build`. Without: the shipped one, if it was built for
    this model, or else the one that was learned."""
    served_model_name: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of the model, separated by commas: answers have the first, and clients may ask for any.
    Without: its own name; that, and its name on the hub, may always be asked for."""
    readers: bool = True
    """Whether prompts may be read by the artefact's readers; if not, all are read in full."""
    learn: Literal["idle", "now", "off"] = "idle"
    """When more is learned of a model without an artefact, in the background: while nobody waits
    (`idle`), always (`now`) or never (`off`)."""
    tool_parser: Literal[
        "auto", "hermes", "smollm", "llama3", "mistral", "granite", "phi", "json"
    ] = "auto"
    """How the model writes tool calls: as its chat template says (`auto`), or as the models of the
    family `hermes`, `smollm`, `llama3`, `mistral`, `granite` or `phi`, or as plain `json`."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free port."""
    api_key: Annotated[tuple[str, ...], NoDecode] = ()
    """Keys that open everything, or `sha256:HEX` of them, separated by commas. Without any key none
    is needed. Other users of the machine can see options; a variable or a file is safer."""
    api_key_file: Path | None = None
    """File of further keys: on each line a key or `sha256:HEX`, then the scopes that it opens
    (`infer`, `metrics`, `admin`; `infer` alone if there are none)."""
    public_metrics: bool = False
    """Whether `/metrics` may be read without a key."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names by which clients may call the server, with or without a port, separated by commas."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may use the server, such as `https://chat.example`, separated by
    commas; `*` for any, which needs a key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is computed: `auto` (the GPU if PyTorch sees one), `cpu` or `cuda`."""
    weights: Precision = "auto"
    """Precision of the weights: `auto` (that of the source), `fp32`, `bf16`, `int8` or `int4`."""
    threads: int | None = Field(default=None, ge=1)
    """Processor threads that compute the model. Without: all cores."""
    context: int | None = Field(default=None, ge=64)
    """Longest prompt and answer together, in tokens. Without: the model's own maximum."""
    max_running: int = Field(default=16, ge=1, le=256)
    """Answers that are written at the same time."""
    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait; further ones get status 503."""
    max_waiting_tokens: int = Field(default=131_072, ge=1)
    """Prompt tokens that may wait, over all requests; further requests get status 503."""
    max_waiting_seconds: float = Field(default=120.0, gt=0)
    """Predicted time in the queue beyond which a request gets status 503 at once."""
    step_tokens: int = Field(default=256, ge=16)
    """Tokens that one step of the engine processes, over all requests."""
    kv_tokens: int | None = Field(default=None, ge=512)
    """Size of the KV cache in tokens. Without: what half of the free memory holds, or all that can
    be used. On a CPU memory is taken as tokens come."""
    kv_cache: Literal["auto", "weights", "int8"] = "auto"
    """Type of the KV cache: `weights` (that of the weights), `int8`, which takes half the memory
    and needs weights in 4 or 8 bits, or `auto`: `int8` if the other would hold few tokens."""
    kv_scorer: str = "streaming"
    """Which tokens a KV budget keeps: `streaming`, `key-norm`, `key-diff`, `snap` or
    `expected-attention`; or `quest`, which keeps all, and each written token attends to the pages
    that matter most to it."""
    kv_budgets: Annotated[tuple[Annotated[int, Field(ge=32)], ...], NoDecode] = DEFAULT_KV_BUDGETS
    """KV budgets that the controller may choose, in tokens, as a JSON list."""
    speculate: bool = True
    """Whether to guess tokens ahead and verify them. This never changes what is written."""

    policy: str = "rule"
    """What chooses the variant: `rule`, `random`, `static:VARIANT`, `refusing:VARIANT`, or a folder
    by `trimtab train-policy`."""
    force: bool = False
    """Whether to serve a trained policy that did not beat the rule."""
    explore: float = Field(default=0.0, ge=0, le=1)
    """Share of decisions that are left to chance, for `trimtab estimate` to learn from."""
    ttft_ms: float | None = Field(default=2000.0, gt=0)
    """Objective for the time to the first token, in milliseconds, of requests that name none."""
    tpot_ms: float | None = Field(default=None, gt=0)
    """Objective for the time per further token, in milliseconds, of requests that name none."""
    max_loss: float | None = Field(default=None, ge=0)
    """Largest predicted loss of an answer, in nats per token, of requests that name none."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """Objective for the time of the whole answer, in milliseconds, of requests that name none."""
    refuse_late: bool = False
    """Whether to answer with status 503 if the queue is too long for `ttft_ms`; large requests are
    refused first."""
    tasks_floor: float = Field(default=0.9, ge=0, le=1)
    """Share of what the base finds in prompts, in passkeys and look-ups, that a reader has to find
    to be used before anything else is."""
    save_energy: bool = False
    """Whether to decide as if the battery were low, always."""
    analyzer: Literal["patterns", "nltk", "spacy"] = "patterns"
    """What analyzes prompts: `patterns`, `nltk` or `spacy`. A backend that has no time left falls
    back to a quicker one."""
    dwell_seconds: float = Field(default=1.0, ge=0)
    """How long a variant stays chosen after a change, for requests of the same kind."""
    narrow: bool = False
    """Whether any answer may change to a narrower variant midway, not only if it sets `narrow`."""

    shadow_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the answers that are checked against the base in idle moments."""
    audit_log: Path | None = None
    """File that gets a line of JSON for each decision. Without: none is written."""
    audit_max_bytes: int = Field(default=64 * 2**20, ge=4096)
    """Size at which the audit log starts a new file; five old files are kept."""
    audit_prompts: bool = False
    """Whether the audit log may contain the text of prompts."""
    telemetry_seconds: float = Field(default=0.5, gt=0)
    """Time between readings of the machine."""
    access_log: bool = True
    """Whether each request is a line in the log."""
    log_format: Literal["text", "json"] = "text"
    """How log lines look: `text`, or `json` with one object in each line."""
    metrics_compat: Literal["vllm"] | None = None
    """`vllm`: `/metrics` also has vLLM's names, for tools that ask for them."""
    otlp_traces_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s]+\S*$")
    """Where traces are sent, by OTLP over HTTP: `http://localhost:4318`. Needs the extra `otel`."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest body of a request; a larger one gets status 413."""
    max_answers: int = Field(default=64, ge=1)
    """Largest number of prompts times `n` in one request."""
    max_connections: int | None = Field(default=None, ge=1)
    """Connections at the same time. Without: 10,000, or what the limit on open files allows."""
    header_seconds: float = Field(default=10.0, gt=0)
    """Time that a client has to send the headers of a request."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Time that a client has to send the body of a request."""
    answer_seconds: float | None = Field(default=None, gt=0)
    """Time from a request's arrival on at which its answer is cut. Without: no limit."""
    stall_seconds: float | None = Field(default=None, gt=0)
    """Time of one step after which `/health` answers 503. Without: 5 s, or ten full steps if they
    take longer."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Time that running answers have to end when the server is stopped."""

    @field_validator("kv_budgets", mode="before")
    @classmethod
    def _parse_budgets(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError("expected a JSON list such as [1024, 512]") from error

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _parse_hosts(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and any(not n or "/" in n or " " in n for n in names):
            raise ValueError("expected names such as models.example,localhost:3000")
        return names

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _parse_names(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and any(not n or "@" in n or " " in n for n in names):
            raise ValueError("expected names without @ and blanks, such as gpt-4o-mini,small")
        return names

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> object:
        return split_origins(value)

    @field_validator("api_key", mode="before")
    @classmethod
    def _hash_keys(cls, value: object) -> object:
        """Keep no key itself, so that none can get into a log."""
        keys = value.split(",") if isinstance(value, str) else value
        if isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys):
            return tuple(hashed_key(key) for key in keys)
        return keys

    @model_validator(mode="after")
    def _check_step_size(self) -> Self:
        if self.step_tokens < self.max_running:
            raise ValueError(
                f"step_tokens ({self.step_tokens}) must be at least max_running "
                f"({self.max_running})"
            )
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> Self:
        if ANY_ORIGIN in self.cors_origins and not (self.api_key or self.api_key_file):
            raise ValueError("cors_origins '*' needs an API key: any web page could use the server")
        return self

    def to_model_config(self) -> ModelConfig:
        """Return the settings that say which model is loaded, and how."""
        return ModelConfig(
            self.model,
            self.artefact,
            self.weights,
            self.device,
            self.context,
            self.threads,
            self.readers,
        )

    def to_engine_config(self) -> EngineConfig:
        """Return the settings that say how the engine batches requests."""
        selects_pages = self.kv_scorer == "quest"  # which a cache in 8 bits does not
        return EngineConfig(
            self.max_running,
            self.step_tokens,
            self.kv_tokens,
            "weights" if selects_pages else self.kv_cache,
            self.speculate,
        )


def option_name(name: str) -> str:
    """Return the option of `trimtab serve` that gives a setting, such as `--max-running`."""
    return f"--{name.replace('_', '-')}"


def variable_name(name: str) -> str:
    """Return the environment variable that gives a setting, such as `TRIMTAB_MAX_RUNNING`."""
    return PREFIX + name.upper()


def setting_description(name: str) -> str:
    """Return what a setting means, on one line."""
    return " ".join((Settings.model_fields[name].description or "").split())


def default_text(name: str) -> str:
    """Return a setting's default as an option would give it; "" if there is none."""
    value = Settings.model_fields[name].default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_groups() -> dict[str, list[str]]:
    """Return the names of the settings by the title of their group, in the order of `Settings`."""
    titles = {first: title for title, first in _FIRST_OF_GROUP.items()}
    groups: dict[str, list[str]] = {}
    title = ""
    for name in Settings.model_fields:
        title = titles.get(name, title)
        groups.setdefault(title, []).append(name)
    return groups
