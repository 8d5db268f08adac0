import dataclasses

import pytest
import torch
from rich.progress import Progress

from pruners.architecture import UnsupportedModelError, locate
from pruners.artefact import load_artefact
from pruners.build import BuildError, Recipe, build
from pruners.evaluate import evaluate
from pruners.fingerprint import fingerprint
from pruners.mask import mask
from pruners.rows import rows_hash
from tests.pruners.models import FAMILIES, random_rows, tiny_model

RECIPE = Recipe(
    ffn_keep=(0.75, 0.5),
    skip_layers=(1,),
    mixed=((2, 0.5),),
    calibration_tokens=200,
    selection_tokens=60,
)
CALIBRATION = random_rows(12, (24, 17), seed=1)
HELD_OUT = random_rows(3, (20,), seed=2)


def build_tiny(family: str = "llama-gqa", **overrides):
    arguments = {
        "model": tiny_model(family),
        "model_name": "tiny",
        "calibration_rows": CALIBRATION,
        "held_out_rows": HELD_OUT,
        "recipe": RECIPE,
        "calibration_source": "random tokens",
        "held_out_source": "other random tokens",
    }
    return build(**{**arguments, **overrides})


@pytest.mark.parametrize("family", FAMILIES)
def test_build_saves_loads_and_measures_what_it_says(family: str, tmp_path):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    artefact = build_tiny(family, model=model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    artefact.save(tmp_path / "artefact")
    loaded = load_artefact(tmp_path / "artefact")
    assert [v.name for v in loaded.variants] == ["ffn-75", "ffn-50", "depth-2", "depth-1-ffn-50"]
    assert loaded.fingerprint == fingerprint(model)
    assert set(loaded.quality) == {v.name for v in loaded.variants}

    decoder = locate(model)
    for spec in loaded.variants:
        again = evaluate(
            decoder, {"again": lambda s=spec: mask(decoder, s, loaded.order)}, HELD_OUT
        )
        assert again.quality["again"] == loaded.quality[spec.name]
        assert loaded.quality[spec.name].kl > 0
    assert loaded.evaluation == {
        "source": "other random tokens",
        "rows": 3,
        "tokens": 60,
        "hash": rows_hash(HELD_OUT),
        "window": 20,
        "predictions": 57,
        "base_perplexity": pytest.approx(again.base_perplexity),
    }


def test_provenance_says_what_it_took():
    provenance = build_tiny().provenance
    assert set(provenance["versions"]) == {"trimtab", "torch", "transformers"}
    assert provenance["recipe"] == dataclasses.asdict(RECIPE)
    assert provenance["calibration"]["tokens"] == 200
    assert provenance["calibration"]["source"] == "random tokens"
    assert len(provenance["skip_order"]["layers"]) == 2


def test_build_is_deterministic_by_seed():
    first, again = build_tiny(), build_tiny()
    assert torch.equal(first.ffn_order, again.ffn_order)
    assert first.variants == again.variants
    assert first.quality == again.quality
    assert first.provenance == again.provenance
    other = build_tiny(recipe=dataclasses.replace(RECIPE, seed=5))
    assert other.provenance["calibration"]["hash"] != first.provenance["calibration"]["hash"]


def test_kv_budgets_are_measured_where_rows_are_long_enough():
    artefact = build_tiny(recipe=dataclasses.replace(RECIPE, kv_budgets=(512, 8)))
    assert list(artefact.kv_quality) == [8]
    assert artefact.kv_quality[8].kl > 0


def test_widths_alone_need_no_layer_selection():
    recipe = dataclasses.replace(RECIPE, skip_layers=(), mixed=())
    artefact = build_tiny(recipe=recipe)
    assert [v.name for v in artefact.variants] == ["ffn-75", "ffn-50"]
    assert artefact.provenance["skip_order"] == {"layers": [], "kl": []}


def test_shows_progress():
    progress = Progress(disable=True)
    build_tiny(progress=progress)
    shown = [task.description for task in progress.tasks]
    assert shown[0] == "Calibrating"
    assert shown[-1] == "Measuring quality"
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
        ({"calibration_rows": []}, "calibration rows hold no text"),
        ({"held_out_rows": [CALIBRATION[4]]}, "also a calibration row"),
    ],
)
def test_refuses_in_one_line(overrides: dict, message: str):
    with pytest.raises(BuildError, match=message) as refused:
        build_tiny(**overrides)
    assert "\n" not in str(refused.value)


def test_refuses_an_unknown_family():
    with pytest.raises(UnsupportedModelError, match="'Linear' is not supported"):
        build_tiny(model=torch.nn.Linear(2, 2))
