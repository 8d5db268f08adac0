"""What each stage adds to an artefact, on a tiny model, in this process."""

from dataclasses import replace

import pytest

from pruners.artefact.folder import ArtefactError, load_artefact
from pruners.support.progress import progress_bars
from server.engine.loading.checkpoint import open_checkpoint
from server.learning import stages as module
from server.learning.stages import RUN, LearnedModel, LearningJob, empty_artefact, skipped_layers
from tests.support.models import SIZES
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("stages") / "tiny")


@pytest.fixture
def job_in(source, tmp_path, monkeypatch):
    """Return a function that makes a job of little text in a precision."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    for name, rows in (("_FITTED", 16), ("_FITTED_WIDTHS", 16), ("_HELD_OUT", 6), ("_BUDGETS", 2)):
        monkeypatch.setattr(module, name, (rows, 120, 700 + len(name)))
    monkeypatch.setattr(module, "DEFAULT_KV_BUDGETS", (32,))

    def job(precision):
        identity = open_checkpoint(source).fingerprint()
        model = LearnedModel(source, "tiny", identity, precision)
        return LearningJob(model, tmp_path / "artefact", progress_bars())

    return job


def run(job, *names):
    """Run some stages, each from the artefact that the one before has saved."""
    artefact = empty_artefact(job)
    for name in names:
        with job.checkpoint(name) as checkpoint:
            RUN[name](job, artefact, checkpoint).save(job.target)
        artefact = load_artefact(job.target)
    return artefact


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_readers_budgets_and_depth_keep_the_order_of_units(job_in, precision):
    job = job_in(precision)
    first = run(job, "reading")
    assert len(first.readers) == 1
    (name,) = first.readers
    assert first.table.reader_quality[name]["all"].kl > 0
    found = run(job, "reading", "budgets", "readers", "depth")
    assert next(iter(found.readers)) == name
    assert len(found.readers) == 3
    assert found.table.reader_quality.keys() == found.readers.keys()
    assert found.table.kv_quality[32].kl > 0
    assert [spec.name for spec in found.variants] == ["depth-2"]
    assert found.table.quality["depth-2"].kl > 0
    assert found.order.digest() == first.order.digest()
    assert not list(job.target.parent.glob(".artefact*")), "nothing is left of the stages"


def test_widths_come_with_an_order_and_all_else_stays(job_in):
    job = job_in("fp32")
    before = run(job, "reading", "depth")
    with job.checkpoint("widths") as checkpoint:
        RUN["widths"](job, before, checkpoint).save(job.target)
    found = load_artefact(job.target)
    assert found.order.digest() != before.order.digest()
    assert found.readers.keys() == before.readers.keys()
    assert any(spec.name.startswith("mix-") for spec in found.variants)
    costs = [found.table.cost[spec.name].bytes_read for spec in found.variants]
    losses = [found.table.quality[spec.name].kl for spec in found.variants]
    assert costs == sorted(costs, reverse=True)
    assert losses == sorted(losses), "those that another beats are left out"


def test_another_model_in_the_same_place_is_noticed(job_in):
    job = job_in("fp32")
    other = LearningJob(replace(job.model, fingerprint="0" * 32), job.target, job.progress)
    with pytest.raises(ArtefactError, match="by now"):
        other.located  # noqa: B018


def test_the_first_reader_is_never_fitted_again(job_in, monkeypatch):
    job = job_in("fp32")
    artefact = run(job, "reading")
    wanted = []
    fit = module.fit_readers

    def noted(*given):
        wanted.append(given[1])
        return fit(*given)

    monkeypatch.setattr(module, "fit_readers", noted)
    with job.checkpoint("readers") as checkpoint:
        RUN["readers"](job, artefact, checkpoint)
    assert not wanted[0].keys() & artefact.readers.keys()


@pytest.mark.parametrize(
    ("layers", "skipped"), [(30, (1, 3, 6)), (16, (1, 2, 3)), (3, (1,)), (2, (1,)), (1, ())]
)
def test_depth_variants_leave_a_layer_at_least(layers, skipped):
    from pruners.architecture import Shape

    shape = Shape(layers, SIZES["hidden_size"], 4, 2, 16, 96, 97)
    assert skipped_layers(shape) == skipped
