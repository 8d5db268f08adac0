"""What the tools of macOS say about heat and memory; there is no /proc and no /sys."""

import re

from telemetry.system_tool import SystemTool


def thermal_tool() -> SystemTool:
    """Return the tool whose output `speed_limit_ratio` reads."""
    return SystemTool(["pmset", "-g", "therm"], period_seconds=5.0)


def memory_tool() -> SystemTool:
    """Return the tool whose output `free_memory_ratio` reads."""
    return SystemTool(["memory_pressure", "-Q"], period_seconds=2.0)


def speed_limit_ratio(text: str) -> float | None:
    """Return the share (0..1) of their speed that the processors may have; None if not said.

    Processors by Apple have a note in place of the limit while there is none.
    """
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    if limit:
        return min(1.0, int(limit[1]) / 100)
    return 1.0 if "No thermal warning level has been recorded" in text else None


def free_memory_ratio(text: str) -> float | None:
    """Return the share (0..1) of the memory that the kernel counts as free, or None if not said."""
    percent = re.search(r"System-wide memory free percentage:\s*(\d+)%", text)
    return int(percent[1]) / 100 if percent else None
