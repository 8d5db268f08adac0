"""The profile on disk, rates from measured times, and traces as they are published."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from policies.simulation.profile import ProfileError, load_profile
from policies.simulation.rates import Rates, fit_rates
from policies.simulation.traffic import TrafficError, at_load, read_trace, shortened, synthetic
from pruners.data.readers import ReadError
from pruners.support.errors import UserError
from pruners.support.files import file_hash
from tests.support.paper import RATES, profile


def test_a_profile_comes_back_as_it_was(tmp_path):
    made = profile()
    made.save(tmp_path)
    found = load_profile(tmp_path)
    np.testing.assert_array_equal(found.prompts.loss, made.prompts.loss)
    assert (found.rates, found.kv_loss, found.variants) == (
        made.rates,
        made.kv_loss,
        made.variants,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["profile.json", "profile.safetensors"]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("profile.json", "{", "not JSON"),
        ("profile.json", "{}", "damaged"),
        ("profile.json", None, "cannot read"),
        ("profile.safetensors", "x", "damaged"),
    ],
)
def test_a_damaged_profile_is_one_line(tmp_path, file, text, says):
    profile().save(tmp_path)
    path = tmp_path / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ProfileError, match=says) as error:
        load_profile(tmp_path)
    assert "\n" not in str(error.value)


def numbers(change):
    """Changes the arrays of a profile's folder."""

    def damage(folder):
        arrays = load_file(folder / "profile.safetensors")
        change(arrays)
        save_file(arrays, folder / "profile.safetensors")
        hashed = file_hash(folder / "profile.safetensors")
        text(lambda body: body.update(numbers_sha256=hashed))(folder)

    return damage


def text(change):
    """Changes the object in `profile.json`."""

    def damage(folder):
        body = json.loads((folder / "profile.json").read_text())
        change(body)
        (folder / "profile.json").write_text(json.dumps(body))

    return damage


DAMAGE = {
    "NaN": (text(lambda b: b["rates"].update(row=[float("nan")] * 3)), "NaN is no number"),
    "text": (text(lambda b: b["rates"].update(row=["1", 2, 3])), "rates.row.0: Input should be a"),
    "too few": (text(lambda b: b["rates"]["cached"].pop()), "rates.cached has 2 entries for 3"),
    "joules": (text(lambda b: b.update(joules=[1.0])), "joules has 1 entries for 3"),
    "budget": (text(lambda b: b.update(kv_loss={"-1": 0.5})), "kv_loss.-1: Input should be"),
    "bytes": (text(lambda b: b.update(bytes_read=[1, 0, 1])), "bytes_read.1: Input should be gre"),
    "unknown": (text(lambda b: b.update(more=1)), "more: Unexpected keyword"),
    "twice": (text(lambda b: b["variants"].__setitem__(1, "tenth")), "each once"),
    "no base": (text(lambda b: b["variants"].__setitem__(0, "other")), "must be the base"),
    "infinite": (numbers(lambda a: a["surprise"].__setitem__((1, 1), np.inf)), "surprise holds"),
    "predicted": (numbers(lambda a: a["predicted"].__setitem__((0, 0), np.nan)), "predicted holds"),
    "negative": (numbers(lambda a: a["answer"].__setitem__(0, -4)), "answer holds"),
    "shape": (numbers(lambda a: a.update(tokens=a["tokens"][1:])), "tokens has shape"),
    "another array": (numbers(lambda a: a.update(x=a["tokens"].copy())), "profile.safetensors h"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_every_entry_of_a_profile_is_a_number_that_fits(tmp_path, damage, message):
    profile().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ProfileError, match=message) as refused:
        load_profile(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    profile().save(tmp_path)
    body = json.loads((tmp_path / "profile.json").read_text())
    body["variants"] = body["variants"][:2]
    (tmp_path / "profile.json").write_text(json.dumps(body))
    with pytest.raises(ProfileError, match="3 entries for 2 variants"):
        load_profile(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"origin": None}, "origin: Field required"),
        ({"model": None}, "model: Field required"),
        ({"names": ["words"] * 100}, "words"),
        ({"bytes_read": [1.0, float("nan"), 0.3]}, "NaN is no number"),
        ({"numbers_sha256": "0" * 64}, "not the file"),
        ({"schema": 1}, "another version"),
        ({"rates": dict.fromkeys(("stream", "row", "prompt", "cached"), (0, 0, 0))}, "no time"),
    ],
)
def test_what_a_profile_lacks_is_named(tmp_path, changes, says):
    profile().save(tmp_path)
    path = tmp_path / "profile.json"
    body = json.loads(path.read_text()) | changes
    lacking = {name for name, value in changes.items() if value is None}
    path.write_text(json.dumps({k: v for k, v in body.items() if k not in lacking}))
    with pytest.raises(ProfileError, match=says):
        load_profile(tmp_path)


def test_losses_that_are_none_are_refused(tmp_path):
    made = profile()
    made.prompts.predicted[3, 1] = np.nan
    made.save(tmp_path)
    with pytest.raises(ProfileError, match="predicted holds numbers that are none"):
        load_profile(tmp_path)


def test_the_identity_is_of_everything_that_counts(tmp_path):
    one, same, other = profile(), profile(), profile()
    other.prompts.loss[7, 1] += 0.001
    one.save(tmp_path)
    assert one.identity == same.identity == load_profile(tmp_path).identity
    quicker = profile(rates=RATES.scaled(0.5))
    assert len({one.identity, other.identity, quicker.identity, profile(99).identity}) == 4


def test_rates_are_found_again_from_the_times_that_they_make():
    truth = Rates((0.004, 0.002), (0.001, 0.0004), (0.0005, 0.0003), (2e-7, 1e-7))
    decode = [
        {
            f"{rows}x{cached}": truth.full_step(a, rows) + truth.cached[a] * rows * cached
            for rows in (1, 2, 4, 8)
            for cached in (128, 768)
        }
        for a in range(2)
    ]
    prefill = [{str(n): n * truth.prompt[a] for n in (32, 128)} for a in range(2)]
    found = fit_rates(decode, prefill)
    for name in ("stream", "row", "prompt", "cached"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name))
    assert found.scaled(2.0).row == pytest.approx([0.002, 0.0008])


def test_full_batches_weigh_the_most_where_no_line_fits():
    steps = {"1x0": 0.004, "8x0": 0.008, "16x0": 0.016}  # eight more rows take twice as long
    found = fit_rates([steps], [{"32": 0.01}])
    off = [abs(found.full_step(0, int(size[:-2])) / took - 1) for size, took in steps.items()]
    assert off[2] < 0.05 < off[0]


TRACES = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    + "".join(f"2023-11-16 18:15:{4 + i}.5000000,{100 + i},{20 + i}\n" for i in range(10, 20)),
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,DecisionLog Type\n"
    + "".join(f"{14 + i},ChatGPT,{110 + i},{30 + i},9,Conversation log\n" for i in range(10)),
    "mooncake.jsonl": "".join(
        json.dumps({"timestamp": 1000 * (14 + i), "input_length": 110 + i, "output_length": 30 + i})
        + "\n"
        for i in range(10)
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_as_they_are_published(tmp_path, name):
    (tmp_path / name).write_text(TRACES[name])
    found = read_trace(tmp_path / name)
    assert [a.at for a in found] == pytest.approx(range(10))
    assert [(a.prompt, a.output) for a in found] == [(110 + i, 30 + i) for i in range(10)]
    short = shortened(found, 11, 7)
    assert sorted(a.prompt for a in short)[5] == 11
    with pytest.raises(TrafficError, match="holds 3"):
        read_trace(tmp_path / name, 3)


@pytest.mark.parametrize("text", ["", "a,b\n" + "1,2\n" * 9, "TIMESTAMP\nx\n"])
def test_another_file_is_no_trace(tmp_path, text):
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(UserError, match=r"trace\.csv"):
        read_trace(tmp_path / "trace.csv")
    with pytest.raises(ReadError, match="cannot read"):
        read_trace(tmp_path / "none.csv")


ZONES = {"": "", "Z": "Z", "utc": "+00:00", "east": "+05:30", "west": "-0800"}


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("zone", ZONES.values(), ids=ZONES.keys())
def test_times_are_the_same_with_any_zone_and_on_any_host(tmp_path, monkeypatch, timezone, zone):
    """Clocks go forward in New York at 2:00 on this day; fractions are of any length."""
    monkeypatch.setenv("TZ", timezone)
    time.tzset()
    stamps = [
        f"2024-03-10 0{hour}:30:00{part}" for hour in range(5) for part in ("", ".25", ".1234567")
    ]
    rows = "".join(f"{stamp}{zone},100,20\n" for stamp in stamps)
    (tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    try:
        found = [one.at for one in read_trace(tmp_path / "azure.csv")]
    finally:
        monkeypatch.undo()
        time.tzset()
    wanted = sorted(3600 * hour + part for hour in range(5) for part in (0, 0.25, 0.123456))
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nan,1,1", "nan is no time"),
        ("1e999,1,1", "1e999 is no time"),
        ("3,-1,1", "-1 is no number of tokens"),
        ("3,1.5,1", "invalid literal"),
        ("3,,1", "invalid literal"),
        ("3,1", "2 fields under a header of 3"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path, row, message):
    head, good = "Timestamp,Request tokens,Response tokens\n", "1,2,3\n"
    (tmp_path / "trace.csv").write_text(head + good * 9 + row + "\n")
    with pytest.raises(UserError, match=f"trace.csv line 11: {message}"):
        read_trace(tmp_path / "trace.csv")


def test_a_load_is_work_over_time():
    arrivals = at_load(synthetic(500, 0), 2.0, RATES, 8)
    work = sum(RATES.work(0, a.prompt, a.output, 8) for a in arrivals)
    assert work / arrivals[-1].at == pytest.approx(2.0)
