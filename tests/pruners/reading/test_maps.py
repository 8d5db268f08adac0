"""Maps against least squares over everything at once, and their stored form."""

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import make_batches
from pruners.kv.base import SINK_TOKENS
from pruners.reading import fit
from pruners.reading.fit import fit_maps, sum_moments
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
        norm = layer.attention_norm
        h = states[2] if norm is None else norm(states[2])
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


def test_an_interrupted_fit_goes_on_to_the_same_sums(tmp_path, monkeypatch):
    located, rows = locate(tiny_model()), random_rows(9, (30, 21), seed=1)
    monkeypatch.setattr(fit, "_BATCH_TOKENS", 64)
    expected = sum_moments(located, rows, [2, 1])
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
        sum_moments(located, rows, [2, 1], state=state)
    passes.clear()
    monkeypatch.setattr(fit, "final_hidden", lambda *args: dying(*args, after=99))
    found = sum_moments(located, rows, [1, 2], state=state)
    assert len(passes) == len(list(make_batches(rows, 64))) - 2
    for depth, sums in expected.items():
        assert torch.equal(found[depth].within, sums.within)
        assert torch.equal(found[depth].across, sums.across)
    passes.clear()
    sum_moments(located, rows[1:], [1, 2], state=state)  # other rows begin anew
    assert len(passes) == len(list(make_batches(rows[1:], 64)))
    state.write_bytes(b"broken")
    assert torch.equal(sum_moments(located, rows, [2], state=state)[2].across, expected[2].across)


def test_rows_without_a_token_to_fit_on_are_refused():
    with pytest.raises(ValueError, match="no row has more than 4 tokens"):
        fit_maps(locate(tiny_model()), random_rows(3, (4,)), [1])


def test_what_is_stored_twice_is_the_same():
    moment = torch.randn(900, 578).T.cov()
    maps = KVMaps(1, torch.randn(2, 64, 578)).quantised(moment).to_tensors()
    again = from_tensors(maps)[1].to_tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in maps.items())


@pytest.mark.parametrize("hidden", [64, 17])
def test_stored_maps_are_read_back_as_they_are_used(hidden):
    maps = KVMaps(2, torch.randn(3, 8, hidden + 1))
    found = from_tensors(maps.to_tensors())
    assert found.keys() == {2}
    assert found[2].weight.shape == maps.weight.shape
    assert torch.equal(found[2].weight, maps.quantised().weight)
    assert found[2].quantised() is found[2]


def test_a_number_takes_half_a_byte_and_its_share_of_a_scale_and_a_minimum():
    tensors = KVMaps(1, torch.randn(2, 64, 577)).to_tensors().values()
    size = sum(tensor.nbytes for tensor in tensors)
    assert size == 2 * 64 * (576 // 2 + 576 // 32 * (2 + 2) + 4)


@pytest.mark.parametrize(
    "change",
    [
        {"2.scales": None},
        {"2.codes": None},
        {"2.codes": torch.zeros(3, 4, 17)},
        {"2.codes": torch.zeros(3, 4, 33, dtype=torch.uint8)},
        {"2.codes": torch.zeros(12, 17, dtype=torch.uint8)},
        {"2.scales": torch.ones(3, 7, 1).half()},
        {"2.minima": torch.ones(3, 8, 2).half()},
        {"2.bias": torch.ones(3, 8, 1)},
        {"two.codes": torch.zeros(3, 4, 17, dtype=torch.uint8)},
        {"2.more": torch.zeros(3)},
    ],
)
def test_tensors_that_are_no_maps_are_refused(change):
    tensors = KVMaps(2, torch.randn(3, 8, 18)).to_tensors() | change
    with pytest.raises(ValueError, match=r"maps"):
        from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize("depths", [[0], [3], [2, 9]])
def test_depths_that_a_model_does_not_have_are_refused(depths):
    located = locate(tiny_model())
    with pytest.raises(ValueError, match="layers"):
        fit_maps(located, random_rows(1, (9,)), depths)
