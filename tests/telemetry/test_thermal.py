import pytest

from telemetry.thermal import ThermalReader

SYS = "sys/class"


def test_the_hottest_plausible_sensor_wins(plant):
    root = plant(
        {
            f"{SYS}/thermal/thermal_zone0/type": "acpitz",
            f"{SYS}/thermal/thermal_zone0/temp": "27800",
            f"{SYS}/thermal/thermal_zone1/type": "disconnected",
            f"{SYS}/thermal/thermal_zone1/temp": "-274000",
            f"{SYS}/thermal/thermal_zone2/type": "broken",
            f"{SYS}/thermal/thermal_zone2/temp": "255000",
            f"{SYS}/hwmon/hwmon0/name": "k10temp",
            f"{SYS}/hwmon/hwmon0/temp1_input": "81500",
            f"{SYS}/hwmon/hwmon1/name": "drivetemp",
            f"{SYS}/hwmon/hwmon1/temp1_input": "95000",
        }
    )
    reading = ThermalReader(root).read()["temperature_celsius"]
    assert (reading.value, reading.source) == (81.5, "hwmon:k10temp")


def test_no_sensor_is_missing(tmp_path):
    reading = ThermalReader(tmp_path).read()["temperature_celsius"]
    assert (reading.value, reading.reason) == (None, "no temperature sensor")


class Recorded:
    """A tool that has written this."""

    def __init__(self, text):
        self.text = text

    def output(self):
        return self.text


def read(root, system, text):
    readings = ThermalReader(root, system, Recorded(text)).read()
    return readings["temperature_celsius"].value, readings["cpu_speed_limit_ratio"].value


UNLIMITED_APPLE = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
"""
LIMITED_INTEL = """\
Note: No performance warning level has been recorded
2026-08-20 05:08:37 -0700 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 12
\tCPU_Speed_Limit \t= 57
"""


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (UNLIMITED_APPLE, 1.0),
        (LIMITED_INTEL, 0.57),
        (LIMITED_INTEL.replace("57", "100"), 1.0),
        (LIMITED_INTEL.replace("57", "0"), 0.0),
        ("Note: thermal warning level 2\n", None),
        ("", None),
        (None, None),
    ],
)
def test_macos_says_how_far_heat_limits_its_processors(tmp_path, text, limit):
    assert read(tmp_path, "darwin", text) == (None, limit)


WINDOWS = """\
"Name","Temperature","PercentPassiveLimit"
"\\_TZ.TZ00","301","100"
"\\_TZ.CPUZ","351","80"
"\\_TZ.OFF","0","100"
"""


@pytest.mark.parametrize(
    ("text", "celsius", "limit"),
    [
        (WINDOWS, 77.85, 0.8),
        (WINDOWS.replace("\n", "\r\n"), 77.85, 0.8),
        ('"Name","Temperature","PercentPassiveLimit"\n', None, None),
        (WINDOWS.replace("351", ""), 27.85, 1.0),
        ("Get-CimInstance : Invalid class", None, None),
        (None, None, None),
    ],
)
def test_windows_has_thermal_zones(tmp_path, text, celsius, limit):
    assert read(tmp_path, "win32", text) == (pytest.approx(celsius), limit)


def test_linux_asks_no_tool(tmp_path):
    assert ThermalReader(tmp_path, "linux")._tool is None
    assert ThermalReader(tmp_path, "darwin")._tool is not None
