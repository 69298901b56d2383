"""`upstreams.yaml`: read, validated with all its problems at once, compiled to plans.

Names of files, an environment and a secrets directory go in. One frozen `policy.plan.Configuration` comes out, or
every problem that was found. `source` makes a marked tree of what each source says. `check` has pydantic-settings make
`Settings` of them and says what is wrong. `compile` makes plans of the settings, and `explain` puts them into words.
`load` holds the order of these stages and the reasons for it. `settings` is the one list of keys.

What may not happen here: nothing is taken into force (`runtime.reload` does that), no call is made, and no text shows a
secret. The modules are layered, the folders are not: `source.tree` uses `check.problems`, and `source.sources` uses
`explain.keys`.
"""

from headrace.config.check.problems import Problem, render_problems
from headrace.config.load import Inspection, inspect, load
from headrace.config.reuse import Sections
from headrace.config.source.sources import default_files, mode_override

__all__ = [
    "Inspection",
    "Problem",
    "Sections",
    "default_files",
    "inspect",
    "load",
    "mode_override",
    "render_problems",
]
