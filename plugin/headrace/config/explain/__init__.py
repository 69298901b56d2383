"""What a configuration means, in words: for URLs, for keys, as a schema.

Two sources feed it. One is the models: `keys` reads them, `reference` is made of `keys`, `schema` of the models
themselves. So a key that is declared is documented. The other is a configuration without problems: `effective`,
`verdict`, `explain` and `summary` read it together with `Written`, which says where each value was written.

Nothing is decided here. `verdict` asks the functions of `policy` that decide about real calls, so it cannot tell
another story than they do. A value that may be a secret is shown as the mask.
"""
