"""A host on paper whose battery drains and whose processor heats up with what is asked of it.

The figures are a scenario's, not measurements: a small laptop, unless others are given.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostScenario:
    """`battery_joules` is None on mains power. Temperatures in degrees Celsius.

    The processor's heat settles with the time constant `heat_seconds` at `ambient` plus
    `degrees_per_watt` of what it draws; above `throttles_at` every step takes `throttled` times as
    long. `sensed` says whether the server can see the temperature.
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
    """The scenario as it goes: charge, temperature and joules drawn so far."""

    def __init__(self, scenario: HostScenario) -> None:
        self.scenario = scenario
        self.temperature = scenario.ambient
        self.joules = 0.0

    @property
    def charge(self) -> float | None:
        """Left of the battery, 0..1; None on mains power."""
        capacity = self.scenario.battery_joules
        if capacity is None:
            return None
        return max(0.0, self.scenario.charge - self.joules / capacity)

    def work(self, seconds: float, busy: bool) -> float:
        """What work of so many seconds takes now; draws its energy and heats up."""
        scenario = self.scenario
        if busy and self.temperature > scenario.throttles_at:
            seconds *= scenario.throttled
        watts = scenario.watts_busy if busy else scenario.watts_idle
        self.joules += watts * seconds
        settles = scenario.ambient + scenario.degrees_per_watt * watts
        share = min(1.0, seconds / scenario.heat_seconds)
        self.temperature += share * (settles - self.temperature)
        return seconds
