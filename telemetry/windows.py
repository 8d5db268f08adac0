"""What Windows' performance counters say about heat, without the rights of an administrator."""

import csv

from telemetry.system_tool import SystemTool

_ABSOLUTE_ZERO_CELSIUS = -273.15
_CLASS = "Win32_PerfFormattedData_Counters_ThermalZoneInformation"


def thermal_tool() -> SystemTool:
    """Return the tool whose output `thermal_zones` reads. PowerShell takes a second to start."""
    query = f"Get-CimInstance {_CLASS} | Select-Object Name,Temperature,PercentPassiveLimit"
    command = ["powershell", "-NoProfile", "-NonInteractive", "-Command"]
    return SystemTool([*command, f"{query} | ConvertTo-Csv -NoTypeInformation"], 30.0)


def thermal_zones(text: str) -> list[tuple[str, float, float]]:
    """Return name, temperature in degrees Celsius, and share of the full speed of each zone."""
    zones = []
    for row in csv.DictReader(text.splitlines()):
        try:
            kelvin, percent = float(row["Temperature"]), float(row["PercentPassiveLimit"])
        except (KeyError, TypeError, ValueError):
            continue
        zones.append((row["Name"], kelvin + _ABSOLUTE_ZERO_CELSIUS, min(1.0, percent / 100)))
    return zones
