"""How a connection is opened, looked at and written to.

In: a host and its limits. Out: a socket that is connected (`resolve`, then `sockets`; in what order and when, says
`policy.dialling`), and with `tls` one that is secure. `opening` is what another thread ends it by, meanwhile. Nothing
in here imports urllib3.
"""
