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
