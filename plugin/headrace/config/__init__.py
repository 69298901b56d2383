"""`upstreams.yaml`: read, validated with all its problems at once, compiled to plans."""

from headrace.config.check.problems import Problem, render_problems
from headrace.config.load import Inspection, inspect, load
from headrace.config.source.sources import mode_override

__all__ = ["Inspection", "Problem", "inspect", "load", "mode_override", "render_problems"]
