"""A simulated host whose battery drains and whose processor heats up under work.

The figures describe a scenario, not a measured machine: a small laptop, unless others are given.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostScenario:
    """Battery and temperature of a host. Power in watts, temperatures in degrees Celsius.

    `battery_joules` is the battery's capacity, None on mains power, and `charge` (0..1) its first
    charge. The processor's temperature tends to `ambient + degrees_per_watt * watts` with the time
    constant `heat_seconds`. Above `throttles_at` every step takes `throttled` times as long.
    `sensed` says whether the server can read the temperature.
    """

    battery_joules: float | None = None
    charge: float = 1.0
    watts_idle: float = 4.0
    watts_busy: float = 22.0
    ambient: float = 30.0
    degrees_per_watt: float = 2.4
    heat_seconds: float = 40.0
    throttles_at: float = 95.0
    throttled: float = 1.5
    sensed: bool = True


MAINS = HostScenario()
BATTERY = HostScenario(battery_joules=3000.0, charge=0.4)
HOT = HostScenario(ambient=45.0)


class SimulatedHost:
    """The state of a host: temperature, and the energy drawn so far in joules."""

    def __init__(self, scenario: HostScenario) -> None:
        self.scenario = scenario
        self.temperature = scenario.ambient
        self.joules = 0.0

    @property
    def charge(self) -> float | None:
        """The battery's charge (0..1); None on mains power."""
        capacity = self.scenario.battery_joules
        if capacity is None:
            return None
        return max(0.0, self.scenario.charge - self.joules / capacity)

    def spend(self, seconds: float, busy: bool) -> float:
        """Draw energy and change the temperature for some time, at work or idle.

        Return the seconds that this work takes at the present temperature.
        """
        scenario = self.scenario
        if busy and self.temperature > scenario.throttles_at:
            seconds *= scenario.throttled
        watts = scenario.watts_busy if busy else scenario.watts_idle
        self.joules += watts * seconds
        final = scenario.ambient + scenario.degrees_per_watt * watts
        share = min(1.0, seconds / scenario.heat_seconds)
        self.temperature += share * (final - self.temperature)
        return seconds
