"""Maps against least squares over everything at once, and their stored form."""

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import make_batches
from pruners.kv.base import SINK_TOKENS
from pruners.reading import fit
from pruners.reading.fit import fit_maps
from pruners.reading.maps import KVMaps, features, from_tensors
from tests.support.models import FAMILIES, random_rows, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_maps_are_the_ridge_regression_of_keys_and_values(family):
    located = locate(tiny_model(family))
    rows = random_rows(12, (30, 21), seed=1)
    maps = fit_maps(located, rows, [1, 2], ridge=1e-2)
    x, keys, values = [], [], []
    for row in rows:
        states = located.model.base_model(row[None], output_hidden_states=True).hidden_states
        layer = located.layers[2]
        h = layer.attention_norm(states[2])
        x.append(features(states[1][0, SINK_TOKENS:]))
        keys.append(layer.attention.k(h)[0, SINK_TOKENS:])
        values.append(layer.attention.v(h)[0, SINK_TOKENS:])
    x, y = torch.cat(x).double(), torch.cat([torch.cat(keys), torch.cat(values)], dim=1).double()
    # Ridge regression as least squares with one more row for each feature.
    strength = (1e-2 * x.square().sum(0).mean()).sqrt()
    rows_x = torch.cat([x, strength * torch.eye(x.shape[1])])
    rows_y = torch.cat([y, torch.zeros(x.shape[1], y.shape[1])])
    expected = torch.linalg.lstsq(rows_x, rows_y).solution.T
    torch.testing.assert_close(maps[1].weight[1].double(), expected, rtol=1e-3, atol=1e-4)
    assert maps[2].weight.shape == (1, y.shape[1], x.shape[1])


class KilledError(Exception):
    pass


def test_an_interrupted_fit_goes_on_to_the_same_maps(tmp_path, monkeypatch):
    located, rows = locate(tiny_model()), random_rows(9, (30, 21), seed=1)
    monkeypatch.setattr(fit, "_BATCH_TOKENS", 64)
    expected = fit_maps(located, rows, [2, 1])
    monkeypatch.setattr(fit, "_SAVE_SECONDS", 0.0)
    passes = []

    def dying(located, batch, after=2):
        passes.append(batch)
        if len(passes) > after:
            raise KilledError
        return final_hidden(located, batch)

    monkeypatch.setattr(fit, "final_hidden", dying)
    state = tmp_path / "state.safetensors"
    with pytest.raises(KilledError):
        fit_maps(located, rows, [2, 1], state=state)
    passes.clear()
    monkeypatch.setattr(fit, "final_hidden", lambda *args: dying(*args, after=99))
    found = fit_maps(located, rows, [1, 2], state=state)
    assert len(passes) == len(list(make_batches(rows, 64))) - 2
    for depth, maps in expected.items():
        assert torch.equal(found[depth].weight, maps.weight)
    passes.clear()
    fit_maps(located, rows[1:], [1, 2], state=state)  # other rows begin anew
    assert len(passes) == len(list(make_batches(rows[1:], 64)))
    state.write_bytes(b"broken")
    assert torch.equal(fit_maps(located, rows, [2], state=state)[2].weight, expected[2].weight)


def test_rows_without_a_token_to_fit_on_are_refused():
    with pytest.raises(ValueError, match="no row has more than 4 tokens"):
        fit_maps(locate(tiny_model()), random_rows(3, (4,)), [1])


def test_what_is_stored_twice_is_the_same():
    maps = KVMaps(1, torch.randn(2, 64, 577)).to_tensors()
    again = from_tensors(maps)[1].to_tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in maps.items())


def test_stored_maps_are_read_back_as_they_are_used():
    maps = KVMaps(2, torch.randn(3, 8, 17))
    found = from_tensors(maps.to_tensors())
    assert found.keys() == {2}
    assert torch.equal(found[2].weight, maps.quantised().weight)
    error = (found[2].weight - maps.weight).abs()
    assert (error <= maps.weight.abs().amax(-1, keepdim=True) / 127 / 2 * 1.0001).all()


@pytest.mark.parametrize(
    "change",
    [
        {"2.scales": None},
        {"2.codes": torch.zeros(3, 8, 17)},
        {"2.scales": torch.ones(3, 7, 1)},
        {"two.codes": torch.zeros(3, 8, 17, dtype=torch.int8)},
    ],
)
def test_tensors_that_are_no_maps_are_refused(change):
    tensors = KVMaps(2, torch.randn(3, 8, 17)).to_tensors() | change
    with pytest.raises(ValueError, match=r"map|scales"):
        from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize("depths", [[0], [3], [2, 9]])
def test_depths_that_a_model_does_not_have_are_refused(depths):
    located = locate(tiny_model())
    with pytest.raises(ValueError, match="layers"):
        fit_maps(located, random_rows(1, (9,)), depths)
