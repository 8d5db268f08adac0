from pathlib import Path

import pytest

from telemetry.energy import EnergyReader

RAPL = "sys/class/powercap"


def zone(number, name, microjoules, span=1000_000_000):
    return {
        f"{RAPL}/intel-rapl:{number}/name": name,
        f"{RAPL}/intel-rapl:{number}/energy_uj": str(microjoules),
        f"{RAPL}/intel-rapl:{number}/max_energy_range_uj": str(span),
    }


def two_sockets(first, second):
    return (
        zone("0", "package-0", first)
        | zone("1", "package-1", second)
        | zone("0:0", "core", first // 2)
        | zone("2", "psys", 10 * first)
    )


def test_packages_are_summed_from_the_first_read_without_psys_and_subzones(plant):
    reader = EnergyReader(plant(two_sockets(5_000_000, 7_000_000)))
    assert reader.read()["cpu_energy_joules"].value == 0.0
    plant(two_sockets(6_500_000, 9_000_000))
    assert reader.read()["cpu_energy_joules"].value == pytest.approx(3.5)


def test_a_counter_that_wraps_around_goes_on(plant):
    reader = EnergyReader(plant(zone("0", "package-0", 999_000_000)))
    reader.read()
    plant(zone("0", "package-0", 2_000_000))
    assert reader.read()["cpu_energy_joules"].value == pytest.approx(3.0)
    plant(zone("0", "package-0", 4_000_000))
    assert reader.read()["cpu_energy_joules"].value == pytest.approx(5.0)


def test_an_unreadable_counter_is_missing_and_made_up_for_later(plant, monkeypatch):
    reader = EnergyReader(plant(two_sockets(1_000_000, 1_000_000)))
    reader.read()
    real = Path.read_text

    def refuse(path, *args):
        if path.parent.name == "intel-rapl:1" and path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *args)

    plant(two_sockets(2_000_000, 2_000_000))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        reading = reader.read()["cpu_energy_joules"]
    assert (reading.value, reading.reason) == (None, "Permission denied")
    assert reader.read()["cpu_energy_joules"].value == pytest.approx(2.0)


def test_no_rapl_is_missing(tmp_path):
    assert EnergyReader(tmp_path).read()["cpu_energy_joules"].reason == "no rapl"
