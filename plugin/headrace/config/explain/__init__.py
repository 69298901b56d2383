"""What a configuration means, in words: for URLs, for keys, as a schema.

Two sources feed it. `keys` reads the models and nothing else; `reference` and `schema` are made of it and of them, so
a key that is declared is documented. `effective`, `verdict`, `explain` and `summary` read a configuration without
problems, together with `Written`, which says who wrote what.

Nothing is decided here. `verdict` asks the functions of `policy` that decide about real calls, so it cannot tell
another story than they do. A value that may be a secret is shown as the mask.
"""
