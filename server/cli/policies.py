"""The commands about policies: profile, train-policy and estimate."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from server.cli.options import PROMPTS_HELP, Analyzer, Model, OptionalArtefactFolder, UsageError
from server.engine.loading.source import DEFAULT_MODEL

app = typer.Typer()

_LATEST = 1000
"""Decisions at the end of a log whose candidates tell what there was to choose from."""
_LOST_HELP = "Reward of a request that was refused or missed its objectives."
_POLICY_HELP = (
    "The other policy: rule, random, static:VARIANT, refusing:VARIANT, or a folder by "
    "`trimtab train-policy`."
)
MaxRunning = Annotated[
    int,
    typer.Option(
        min=1, max=256, help="Answers that are written at the same time, as when serving."
    ),
]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="Folder of the profile.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            help=f"{PROMPTS_HELP} Without: an existing profile keeps its losses, and only the "
            "times are measured again, on this device."
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    artefact: OptionalArtefactFolder = None,
    limit: Annotated[int, typer.Option(min=40, help="Largest number of prompts.")] = 500,
    tokens: Annotated[int, typer.Option(min=8, help="Largest number of tokens of an answer.")] = 48,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model is computed.")
    ] = "auto",
    weights: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "int4"],
        typer.Option(help="Precision of the weights; auto keeps what the source has."),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Processor threads that compute the model. Without: all cores."),
    ] = None,
    analyzer: Analyzer = "patterns",
    max_running: MaxRunning = 16,
) -> None:
    """Measure each variant's loss on real prompts, and its times: what policies are trained on.

    An interrupted measurement goes on where it stopped.
    """
    from pruners.data.corpus import read_corpus
    from server.engine.config import ModelConfig
    from server.jobs.profile import ProfileConfig, make_profile, update_timing

    served = ModelConfig(model, artefact, weights, device, threads=threads)
    config = ProfileConfig(served, analyzer, max_running)
    if prompts is None:
        made = update_timing(config, out)
    else:
        made = make_profile(config, out, read_corpus(prompts), limit, tokens)
    typer.echo(f"{out}: {len(made.prompts.names)} prompts, {len(made.variants)} variants")


@app.command()
def estimate(
    log: Annotated[list[Path], typer.Option(help="An audit log. It may be given several times.")],
    policy_name: Annotated[str, typer.Option("--policy", help=_POLICY_HELP)],
    lost: Annotated[float, typer.Option(help=_LOST_HELP, callback=_finite)] = -0.5,
    clip: Annotated[
        float, typer.Option(min=1.0, help="Largest weight of a decision.", callback=_finite)
    ] = 20.0,
) -> None:
    """Estimate from audit logs what another policy would have been worth.

    The logs must come from a server that left some choices to chance (`TRIMTAB_EXPLORE`).
    """
    from policies.offpolicy import LogError, estimate_value, read_log
    from policies.registry import named_policy

    audit = read_log(log, lost)
    decisions = audit.decisions
    if audit.torn:
        typer.echo(f"{audit.torn} torn lines were left out", err=True)
    if not decisions:
        raise LogError(f"{', '.join(map(str, log))} holds no decision")
    # Requests that name a reader have fewer candidates.
    candidates = max((one.observation.candidates for one in decisions[-_LATEST:]), key=len)
    choices = list(dict.fromkeys(c.action.choice for c in candidates))
    target = named_policy(policy_name, choices, None, force=True)
    value = estimate_value(decisions, target, lost, clip)
    typer.echo(f"{target.name}: {value.decisions} decisions, {value.effective:.0f} effective")
    for name, mean, (low, high) in (
        ("SNIPS", value.snips, value.snips_95),
        ("doubly robust", value.doubly_robust, value.doubly_robust_95),
    ):
        typer.echo(f"{name}: {mean:.4f} a request, 95 %: {low:.4f} to {high:.4f}")
    typer.echo(f"largest weight {value.largest:.1f}, clipped at {clip:g}")


@app.command("train-policy")
def train_policy(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the policy and its report.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            help=f"{PROMPTS_HELP} A training makes a profile of them if there is none; with --mode "
            "test, the policy is tested on them."
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Folder by `trimtab profile`. Without: profile in the --out folder."),
    ] = None,
    mode: Annotated[
        Literal["train", "test"],
        typer.Option(help="train, or test to test a policy again with what it was trained with."),
    ] = "train",
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of a test's report. Without: test in the --out folder."),
    ] = None,
    kind: Annotated[
        Literal["dqn", "bandit"],
        typer.Option(help="What learns: dqn (a deep Q-network) or bandit (a contextual bandit)."),
    ] = "dqn",
    episodes: Annotated[
        int, typer.Option(min=10, help="Episodes of 256 decisions; a multiple of 10.")
    ] = 500,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder to go on from. Without: checkpoint in the --out folder."),
    ] = None,
    train_samples: Annotated[
        int | None, typer.Option(min=10, help="Largest number of prompts. Without: all.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of tokens of an answer.")
    ] = 400,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="File of arrivals as Azure, BurstGPT or Mooncake publish them. Without: arrivals "
            "are drawn at random."
        ),
    ] = None,
    lengths: Annotated[
        Literal["prompts", "own"],
        typer.Option(
            help="How a trace's lengths are scaled: prompts (prompts and answers each to those of "
            "short chats) or own (both by one factor: the trace's own ratio)."
        ),
    ] = "prompts",
    requests: Annotated[int, typer.Option(min=24, help="Largest number of arrivals.")] = 6000,
    reward: Annotated[
        Literal["constraint", "thesis"],
        typer.Option(
            help="What an answer is worth: constraint (its quality if it met the objectives) or "
            "thesis (0.6 tokens/s - 0.4 perplexity / 10)."
        ),
    ] = "constraint",
    lost: Annotated[float, typer.Option(help=_LOST_HELP)] = -0.5,
    ttft_ms: Annotated[
        float,
        typer.Option(min=1.0, help="Objective for the time to the first token, in milliseconds."),
    ] = 2000.0,
    ablations: Annotated[
        bool,
        typer.Option(
            help="Also train a policy that does not see the host, and one that does not see the "
            "prompt."
        ),
    ] = True,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of trainings, from different seeds, to compare.")
    ] = 3,
    max_running: MaxRunning = 16,
    model: Model = DEFAULT_MODEL,
    artefact: OptionalArtefactFolder = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of everything that is drawn at random.")
    ] = 0,
) -> None:
    """Train a policy in simulated traffic, and test it on held-out traffic and prompts.

    The result says whether the policy may replace the rule.
    An interrupted training goes on from its last checkpoint.
    """
    try:
        from server.jobs.train_policy import TrainPolicyOptions, run_test, run_training
    except ImportError as error:
        raise UsageError(f"{error}: pip install 'trimtab[train]'") from error

    given = frozenset(name for name in context.params if _on_command_line(context, name))
    options = TrainPolicyOptions(context.params, given)
    verdict, report = run_training(options) if mode == "train" else run_test(options)
    _print_verdict(verdict, report, mode)


def _print_verdict(verdict: Mapping[str, Any], report: Path, mode: str) -> None:
    for text, key in (("the rule", "over_rule"), (verdict["best_static"], "over_best_static")):
        low, high = verdict[key]
        typer.echo(f"gain over {text}, reward a request, 95 %: {low:+.4f} to {high:+.4f}")
    result = "promoted" if verdict["promoted"] else "not promoted: the rule stays the default"
    if mode == "test":
        result = "better than both" if verdict["promoted"] else "not better than both"
    typer.echo(f"{report}: {result}")


def _on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
