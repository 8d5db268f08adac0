"""The commands around policies: profile, train, judge from the audit log."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli.variants import MODEL_HELP, UsageError
from server.engine.loading.source import DEFAULT_MODEL

policy = typer.Typer()

_PROMPTS_HELP = "Text, .jsonl, .csv or hf:NAME[:SPLIT[:COLUMN]]."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
ArtefactFolder = Annotated[Path | None, typer.Option(help="A folder by `trimtab build`.")]
MaxRunning = Annotated[
    int, typer.Option(min=1, max=256, help="Answers written at once, as when serving.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads of the model.")]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


@policy.command()
def profile(
    out: Annotated[Path, typer.Option(help="The profile's folder.")],
    prompts: Annotated[
        str | None,
        typer.Option(help=f"{_PROMPTS_HELP} Without: keep a profile's losses, time this device."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    artefact: ArtefactFolder = None,
    limit: Annotated[int, typer.Option(min=40, help="Prompts at most.")] = 500,
    tokens: Annotated[int, typer.Option(min=8, help="Of an answer.")] = 48,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="To measure on, as it is served.")
    ] = "auto",
    weights: Annotated[
        Literal["auto", "fp32", "bf16", "int8", "int4"], typer.Option(help="As they are served.")
    ] = "auto",
    threads: Threads = None,
    analyzer: Annotated[
        Literal["patterns", "nltk", "spacy"], typer.Option(help="Reads prompts, as when serving.")
    ] = "patterns",
    max_running: MaxRunning = 16,
) -> None:
    """Sweep real prompts through every variant and time these: what policies are trained on.

    An interrupted sweep goes on where it stopped.
    """
    from pruners.data.corpus import read_corpus
    from server.engine.config import ModelConfig
    from server.jobs.profile import ProfileConfig, make_profile, update_timing

    served = ModelConfig(model, artefact, weights, device, threads=threads)
    config = ProfileConfig(served, analyzer, max_running)
    if prompts is None:
        found = update_timing(config, out)
    else:
        found = make_profile(config, out, read_corpus(prompts), limit, tokens)
    typer.echo(f"{out}: {len(found.prompts.names)} prompts, {len(found.variants)} variants")


@policy.command()
def estimate(
    log: Annotated[list[Path], typer.Option(help="An audit log; may be given several times.")],
    policy_name: Annotated[
        str, typer.Option("--policy", help="rule, static:V, refusing:V or a trained folder.")
    ],
    lost: Annotated[
        float, typer.Option(help="What a lost request is worth.", callback=_finite)
    ] = -0.5,
    clip: Annotated[
        float, typer.Option(min=1.0, help="The largest weight.", callback=_finite)
    ] = 20.0,
) -> None:
    """Estimate from audit logs what another policy would have been worth.

    The logs must come from a server that left some choices to chance (`TRIMTAB_EXPLORE`).
    """
    from policies.offpolicy import LogError, estimate_value, read_log
    from policies.registry import named_policy

    found = read_log(log, lost)
    logged = found.decisions
    if found.torn:
        typer.echo(f"{found.torn} torn lines were left out", err=True)
    if not logged:
        raise LogError(f"{', '.join(map(str, log))} holds no decision")
    seen = logged[-1].observation.candidates
    variants = list(dict.fromkeys(c.action.variant for c in seen))
    target = named_policy(policy_name, variants, None, force=True)
    worth = estimate_value(logged, target, lost, clip)
    typer.echo(f"{target.name}: {worth.decisions} decisions, {worth.effective:.0f} effective")
    for name, value, (low, high) in (
        ("SNIPS", worth.snips, worth.snips_95),
        ("doubly robust", worth.doubly_robust, worth.doubly_robust_95),
    ):
        typer.echo(f"{name}: {value:.4f} a request, 95 %: {low:.4f} to {high:.4f}")
    typer.echo(f"largest weight {worth.largest:.1f}, clipped at {clip:g}")


@policy.command("train-policy")
def train_policy(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The folder of the policy and its report.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            help=f"Makes the profile if there is none; with --mode test: others to try it on. "
            f"{_PROMPTS_HELP}"
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="By `trimtab profile`. Default: OUT/profile.")
    ] = None,
    mode: Annotated[
        Literal["train", "test"],
        typer.Option(help="Test: only judge again, with what it was trained with."),
    ] = "train",
    results: Annotated[
        Path | None, typer.Option(help="Where a test's report goes. Default: OUT/test.")
    ] = None,
    kind: Annotated[Literal["dqn", "bandit"], typer.Option(help="What learns.")] = "dqn",
    episodes: Annotated[int, typer.Option(min=10, help="Of 256 decisions; by tens.")] = 500,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder to go on from. Default: OUT/checkpoint.")
    ] = None,
    train_samples: Annotated[int | None, typer.Option(min=10, help="Prompts at most.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.")] = 400,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals as Azure, BurstGPT or Mooncake publish them.")
    ] = None,
    requests: Annotated[int, typer.Option(min=24, help="Arrivals at most.")] = 6000,
    reward: Annotated[Literal["constraint", "thesis"], typer.Option()] = "constraint",
    lost: Annotated[float, typer.Option(help="What a lost request is worth.")] = -0.5,
    ttft_ms: Annotated[float, typer.Option(min=1.0, help="The objective.")] = 2000.0,
    ablations: Annotated[
        bool, typer.Option(help="Also train blind for the host, and for the prompt.")
    ] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings to compare.")] = 3,
    max_running: MaxRunning = 16,
    model: Model = DEFAULT_MODEL,
    artefact: ArtefactFolder = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a policy in simulated traffic, judge it on held-out traffic and prompts, and say
    whether it may replace the rule.

    An interrupted training goes on from its last checkpoint.
    """
    try:
        from server.jobs.train_policy import TrainPolicyOptions, run_test, run_training
    except ImportError as error:
        raise UsageError(f"{error}: pip install 'trimtab[train]'") from error

    given = frozenset(name for name in context.params if _on_command_line(context, name))
    options = TrainPolicyOptions(context.params, given)
    verdict, report = run_training(options) if mode == "train" else run_test(options)
    for text, key in (("the rule", "over_rule"), (verdict["best_static"], "over_best_static")):
        low, high = verdict[key]
        typer.echo(f"gain over {text}, reward a request, 95 %: {low:+.4f} to {high:+.4f}")
    word = "promoted" if verdict["promoted"] else "not promoted: the rule stays the default"
    if mode == "test":
        word = "better than both" if verdict["promoted"] else "not better than both"
    typer.echo(f"{report}: {word}")


def _on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
