"""The table of keys.md: every key with type, default, range and description, from the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.config.explain.keys import Key, is_essential, root_key

COLUMNS = ("key", "type", "default", "range", "what it is")


def key_reference(
    more: tuple[str, Callable[[str], str]] | None = None, *, essential: bool | None = None
) -> str:
    """A Markdown table of every key, in the order of the file.

    Args:
        more: The head of a last column, and what stands in it by the name of the key.
        essential: True: only the keys that a user needs first; False: only the advanced ones.
    """
    every = _rows(root_key(), "")
    chosen = [row for row in every if essential in (None, is_essential(tuple(row[0].strip("`").split("."))))]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *chosen]
    if more is not None:
        head, of = more
        last = [head, "---", *(of(row[0].strip("`")) for row in rows[2:])]
        rows = [(*row, cell) for row, cell in zip(rows, last, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _rows(parent: Key, path: str) -> Iterator[tuple[str, ...]]:
    for name, key in parent.children.items():
        full = f"{path}.{name}" if path else name
        if key.children and name == "defaults":
            # The keys are those of an upstream. A second list would make readers look for a difference.
            yield (
                f"`{full}`",
                "map",
                "",
                "",
                f"{key.description} Any key of an upstream but base_url, match and extends.",
            )
        elif key.children:
            if key.is_nullable:
                yield f"`{full}`", _type(key), _default(key), "", key.description
            yield from _rows(key, full)
        elif key.item is not None and key.item.children and key.is_map:
            yield f"`{full}`", "map", "required", "", key.description
            yield from _rows(key.item, f"{full}.<name>")
        elif key.item is not None and key.item.children:
            yield f"`{full}`", _type(key), _default(key), "", key.description
            yield from _rows(key.item, f"{full}[]")
        else:
            yield f"`{full}`", _type(key), _default(key), key.range, key.description


def _type(key: Key) -> str:
    return f"{key.kind} or null" if key.is_nullable else key.kind


def _default(key: Key) -> str:
    return "required" if key.default is None else f"`{key.default}`"


if __name__ == "__main__":  # python -m headrace.config.explain.reference
    print(key_reference(), end="")
