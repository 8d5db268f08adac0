import dataclasses
import io

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from pruners.architecture import UnsupportedModelError, locate
from pruners.artefact.folder import load_artefact
from pruners.builder.pipeline import build
from pruners.builder.recipe import BuildError, Recipe
from pruners.builder.steps import BuildOptions, BuildRows
from pruners.correction import LowRankCorrection, RefitCorrection
from pruners.data.rows import hash_rows
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.importance import ImportanceError
from pruners.realization.mask import apply_mask
from pruners.support.checkpoint import Checkpoint
from pruners.support.fingerprint import fingerprint
from pruners.variant import BASE, VariantSpec, base_spec
from tests.support.models import PRUNED_FAMILIES, random_rows, tiny_model

RECIPE = Recipe(
    ffn_keep=(0.34,),
    skip_layers=(1,),
    mixed=((2, 0.5),),
    shares=(0.8, 0.6),
    keep_all=True,
    rank=4,
    calibration_tokens=200,
    selection_tokens=60,
)
NUMBERS = ["ffn-34", "depth-2", "depth-1-ffn-50", "mix-80", "mix-60"]
CALIBRATION = random_rows(12, (24, 17), seed=1)
HELD_OUT = random_rows(3, (20,), seed=2)


def build_tiny(family: str = "llama-gqa", **overrides):
    rows = {"calibration": CALIBRATION, "held_out": HELD_OUT}
    rows |= {name: overrides.pop(name) for name in list(rows) if name in overrides}
    model = overrides.pop("model", None) or tiny_model(family)
    recipe = overrides.pop("recipe", RECIPE)
    sources = BuildRows(**rows, calibration_source="random", held_out_source="other random")
    return build(model, "tiny", sources, recipe, BuildOptions(**overrides))


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_build_saves_loads_and_measures_what_it_says(family: str, tmp_path):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    artefact = build_tiny(family, model=model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    artefact.save(tmp_path / "artefact")
    loaded = load_artefact(tmp_path / "artefact")
    assert sorted(v.name for v in loaded.variants) == sorted(NUMBERS)
    assert loaded.fingerprint == fingerprint(model)
    assert set(loaded.table.quality) == set(NUMBERS)

    located = locate(model)
    for spec in loaded.variants:
        own = loaded.corrections.get(spec.name)
        reader = variant_forward(
            located, lambda s=spec, c=own: apply_mask(located, s, loaded.order, c)
        )
        again = evaluate(located, {"again": reader}, HELD_OUT)
        # Corrections are stored in bfloat16.
        assert again.quality["again"].kl == pytest.approx(loaded.table.quality[spec.name].kl, 0.05)
        assert loaded.table.quality[spec.name].kl > 0
    assert loaded.table.evaluation == {
        "source": "other random",
        "rows": 3,
        "tokens": 60,
        "hash": hash_rows(HELD_OUT),
        "window": 20,
        "predictions": 57,
        "base_perplexity": pytest.approx(again.base_perplexity),
    }


def test_shares_of_the_bytes_are_met_with_cuts_of_every_kind():
    artefact = build_tiny(recipe=dataclasses.replace(RECIPE, shares=(0.9, 0.75, 0.6, 0.45)))
    shape = artefact.shape
    base = base_spec(shape)
    specs = {v.name: v for v in artefact.variants}
    for share in (0.9, 0.75, 0.6, 0.45):
        spec = specs[f"mix-{100 * share:g}"]
        cost = artefact.table.cost[spec.name]
        assert share - 0.15 < cost.bytes_read <= share
        own = artefact.corrections.get(spec.name, {})
        assert cost.correction_parameters == sum(
            t.numel() for c in own.values() for t in c.tensors()
        )
    small = specs["mix-45"]
    assert min(small.kv_groups) < base.kv_groups[0]
    assert min(small.ffn) < base.ffn[0]
    assert artefact.table.cost[BASE].bytes_read == 1


def test_a_latency_budget_is_met_in_the_seconds_that_are_given():
    def seconds(spec: VariantSpec) -> float:  # KV groups are dear, neurons cheap
        return 1 + sum(spec.kv_groups) + 0.001 * sum(spec.ffn)

    recipe = dataclasses.replace(RECIPE, budget="latency", shares=(0.8,))
    artefact = build_tiny(recipe=recipe, step_seconds=seconds)
    (made,) = (v for v in artefact.variants if v.name.startswith("time-"))
    base = base_spec(artefact.shape)
    assert made.name == "time-80"
    assert seconds(made) <= 0.8 * seconds(base)
    assert sum(made.kv_groups) < sum(base.kv_groups)
    with pytest.raises(BuildError, match="latency"):
        build_tiny(recipe=recipe)
    with pytest.raises(BuildError, match="bytes"):
        build_tiny(step_seconds=seconds)


def test_without_shares_to_meet_only_what_is_needed_is_fitted():
    few, all_ = build_tiny(recipe=dataclasses.replace(RECIPE, shares=())), build_tiny()
    fitted = few.provenance["recovery"]["outputs"]
    assert {(o["part"], o["inputs"]) for o in fitted} == {("mlp", 64), ("mlp", 32)}
    assert few.corrections.keys() == all_.corrections.keys() - {"mix-80", "mix-60"}
    for name, corrections in few.corrections.items():
        assert corrections.keys() == all_.corrections[name].keys()
        for block, correction in corrections.items():
            pairs = zip(correction.tensors(), all_.corrections[name][block].tensors(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_corrections_are_kept_only_where_they_help_on_the_selection():
    artefact = build_tiny()
    kl = artefact.provenance["recovery"]["kl"]
    for name in NUMBERS:
        helped = kl[name]["shared"] < kl[name]["none"]
        assert (name in artefact.corrections) == helped


def test_what_another_variant_beats_is_left_out():
    full = build_tiny()
    best = build_tiny(recipe=dataclasses.replace(RECIPE, keep_all=False))
    assert {v.name for v in best.variants} | set(best.provenance["beaten"]) == set(NUMBERS)
    points = [(full.table.cost[n].bytes_read, full.table.quality[n].kl) for n in NUMBERS]
    for name in NUMBERS:
        cost, loss = full.table.cost[name].bytes_read, full.table.quality[name].kl
        beaten = any(c <= cost and k < loss for c, k in points)
        assert (name in best.provenance["beaten"]) == beaten


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sequential", "materialised"])
def test_each_variant_may_be_fitted_for_itself(way: str):
    recipe = dataclasses.replace(RECIPE, calibration_tokens=1200, selection_tokens=300)
    rows = random_rows(60, (24, 17), seed=1)  # fewer are learned by heart, and refused as no help
    artefact = build_tiny(calibration=rows, recipe=dataclasses.replace(recipe, **{way: True}))
    assert set(artefact.provenance["recovery"]["kl"]["mix-60"]) == {"none", "shared", way}
    kinds = {type(c) for own in artefact.corrections.values() for c in own.values()}
    assert LowRankCorrection in kinds
    if way == "materialised":
        assert RefitCorrection in kinds


@pytest.mark.slow
def test_candidates_are_searched_by_their_measured_loss():
    plain = build_tiny(recipe=dataclasses.replace(RECIPE, shares=(0.6,)))
    found = build_tiny(recipe=dataclasses.replace(RECIPE, shares=(0.6,), search=4))
    kl = [a.provenance["recovery"]["kl"]["mix-60"]["shared"] for a in (plain, found)]
    assert kl[1] <= kl[0]


class KilledError(Exception):
    pass


def test_a_killed_build_goes_on_to_the_same_artefact(tmp_path, monkeypatch):
    expected = build_tiny()
    monkeypatch.setattr("pruners.builder.steps.order_layers_to_skip", _die)
    with pytest.raises(KilledError):
        build_tiny(checkpoint=Checkpoint(tmp_path / "j", "run"))
    monkeypatch.undo()
    monkeypatch.setattr("pruners.builder.steps.fit_library", _die)
    monkeypatch.setattr("pruners.builder.steps.evaluate", _die)
    with pytest.raises(KilledError):
        build_tiny(checkpoint=Checkpoint(tmp_path / "j", "run"))
    monkeypatch.undo()
    monkeypatch.setattr("pruners.builder.steps.fit_library", _die)
    monkeypatch.setattr("pruners.builder.steps.order_layers_to_skip", _die)
    monkeypatch.setattr("pruners.allocation.measured_curves._measure_kl", _die)
    found = build_tiny(checkpoint=Checkpoint(tmp_path / "j", "run"))
    assert found.variants == expected.variants
    assert found.table == expected.table
    assert found.provenance == expected.provenance


def _die(*_: object, **__: object) -> None:
    raise KilledError


def test_provenance_says_what_it_took():
    provenance = build_tiny().provenance
    assert set(provenance["versions"]) == {"trimtab", "torch", "transformers"}
    assert provenance["recipe"] == dataclasses.asdict(RECIPE)
    assert provenance["calibration"]["tokens"] == 200
    assert provenance["calibration"]["source"] == "random"
    assert len(provenance["skip_order"]["layers"]) == 2


def test_build_is_deterministic_by_seed():
    first, again = build_tiny(), build_tiny()
    assert torch.equal(first.ffn_order, again.ffn_order)
    assert first.variants == again.variants
    assert first.table == again.table
    assert first.provenance == again.provenance
    other = build_tiny(recipe=dataclasses.replace(RECIPE, seed=5))
    assert other.provenance["calibration"]["hash"] != first.provenance["calibration"]["hash"]


def test_kv_budgets_are_measured_where_rows_are_long_enough():
    artefact = build_tiny(recipe=dataclasses.replace(RECIPE, kv_budgets=(512, 8)))
    assert list(artefact.table.kv_quality) == [8]
    assert artefact.table.kv_quality[8].kl > 0


def test_widths_alone_need_no_selection():
    recipe = dataclasses.replace(RECIPE, skip_layers=(), mixed=(), shares=())
    with Progress(console=Console(file=io.StringIO())) as progress:
        artefact = build_tiny(recipe=recipe, progress=progress)
    assert [v.name for v in artefact.variants] == ["ffn-34"]
    assert artefact.provenance["skip_order"] == {"layers": [], "kl": []}
    shown = {task.description for task in progress.tasks}
    assert shown == {"Calibrating", "Measuring quality"}
    assert all(task.finished for task in progress.tasks)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"recipe": Recipe(skip_layers=(3,), mixed=())}, "cannot skip 3 of the model's 3 layers"),
        ({"recipe": Recipe(ffn_keep=(1.5,), skip_layers=(), mixed=())}, "1.5 is not between"),
        ({"recipe": dataclasses.replace(RECIPE, selection_tokens=1)}, "at least 2 tokens"),
        (
            {"recipe": dataclasses.replace(RECIPE, kv_budgets=(4,))},
            "budget of 4 tokens is not",
        ),
        ({"recipe": dataclasses.replace(RECIPE, shares=(0.01,))}, "smallest widths still cost"),
        ({"recipe": dataclasses.replace(RECIPE, rank=-1)}, "cannot be negative"),
        ({"calibration": []}, "calibration rows hold no text"),
        ({"held_out": [CALIBRATION[4]]}, "also a calibration row"),
    ],
)
def test_refuses_in_one_line(overrides: dict, message: str):
    with pytest.raises(BuildError, match=message) as refused:
        build_tiny(**overrides)
    assert "\n" not in str(refused.value)


def test_refuses_an_unknown_importance():
    with pytest.raises(ImportanceError, match="no importance 'magic'"):
        build_tiny(recipe=Recipe(importance="magic"))


def test_refuses_an_unknown_family():
    with pytest.raises(UnsupportedModelError, match="'Linear' is not supported"):
        build_tiny(model=torch.nn.Linear(2, 2))
