"""What is wrong with a configuration, and what is only doubtful.

A marked tree (`source.written.Written`) comes in; `Settings`, problems, findings and hints go out. `validate` judges
one value at a time. `checks` and `fallbacks` judge values that are good by themselves and make no sense together.
`trust` and `predicates` look at what the file names outside of itself: certificates, functions. `lint` tells of rules
that hold, but probably not as meant, and refuses nothing. `hints` tells what other code may do. `problems` is what
all of them say it with.

Every check tells all that it finds and raises nothing. Before a check compares two values, it asks
`Written.is_usable`: where a value was refused, the settings hold its default, and a contradiction with that is
nobody's mistake. Every text asks `Written.shown` first, so that no secret is in it.
"""
