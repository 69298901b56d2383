"""For tests: rules played on a virtual clock, and state that one test leaves to no other."""

from headrace.testing.clock import VirtualClock
from headrace.testing.isolation import isolated
from headrace.testing.script import ScriptExhausted
from headrace.testing.simulation import CallResult, SimulatedUpstream, Simulation
from headrace.testing.timeline import Moment, Timeline
from headrace.testing.traffic import Traffic

__all__ = [
    "CallResult",
    "Moment",
    "ScriptExhausted",
    "SimulatedUpstream",
    "Simulation",
    "Timeline",
    "Traffic",
    "VirtualClock",
    "isolated",
]
