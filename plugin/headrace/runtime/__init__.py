"""What lives for longer than a call: upstreams and their state, the snapshot in force, reloads, and the threads.

A `policy.plan.Configuration` goes in. `snapshot` makes one `Snapshot` of it: an `Upstream` per name, which is a plan
with its state. `reload` owns the one in force and replaces it as a whole. `state` is what survives that, as far as
`migrate` says. `service` and `reports` count and log; `readings` reads for metrics and status.

`threads` lists the threads. `deadlines` ends attempts in time, `heartbeat` and `warmup` look after idle connections,
`watch` tells of edits. `inbound`, `cancellation` and `executor` tie calls to the inbound request that they serve.
`process` renews all of it in a forked child.

What may not happen here: nothing is decided about a call (`policy`), and no lock of this package is taken on the path
of a call, but the short ones that `docs/architecture.md` lists.
"""
