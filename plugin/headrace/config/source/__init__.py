"""From files, secrets and the environment to one tree, with the place where each value was written.

`files` reads bytes, each file once. `document` makes a marked tree of YAML text and `interpolate` replaces references
in it. `sources` makes a tree of each source; these are sources of pydantic-settings, which merges them, and the weakest
is `inherit`: `defaults` and `extends`. `tree` is the tree, `written` answers who wrote what, and `values` and `units`
say how a single value is read.

Two marks go with a value from here to the last message: where it was written, and whether it came from outside.
Limits hold before memory is spent. What may not happen here: no secret gets into a text, and no node is changed once
it is built.
"""
