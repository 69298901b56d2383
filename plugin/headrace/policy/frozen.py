"""Frozen classes of values: `@dataclass(frozen=True, slots=True)`, made in a third of the time.

For each class stdlib writes and compiles six methods. With ninety such classes that was a third of what an import of
headrace took, above that of its dependencies (0.55 ms a class, CPython 3.13; 0.2 ms here). Only `__init__` has to be
compiled for its class. The others need no more than the names of the fields.

They are dataclasses all the same: `fields`, `replace`, `asdict` and `match` work, and so do copies and pickles.
What none of them has so far is not supported: inheritance of fields, `__post_init__`, `InitVar`, `kw_only`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """*cls* as a frozen dataclass with slots."""
    # Any: methods are set below, which mypy allows on no class.
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    own = fields(made)
    names = [one.name for one in own]
    made.__init__ = _initializer(cls, own)
    made.__repr__ = _shown
    made.__eq__, made.__hash__ = _comparison([one.name for one in own if one.compare])
    made.__setattr__, made.__delattr__ = _refuse_to_set, _refuse_to_delete
    made.__getstate__, made.__setstate__ = _pickling(names)
    return made  # type: ignore[no-any-return]


def _initializer(cls: type[object], own: tuple[Field[Any], ...]) -> Callable[..., None]:
    """`__init__` of *own*, compiled: a generic one would cost each object, not each class."""
    known: dict[str, object] = {"_set": object.__setattr__, "_missing": MISSING}
    parameters, lines = ["self"], []
    for one in own:
        name = value = one.name
        if one.default_factory is not MISSING:
            known[f"_make_{name}"] = one.default_factory
            parameters.append(f"{name}=_missing")
            value = f"_make_{name}() if {name} is _missing else {name}"
        elif one.default is not MISSING:
            known[f"_default_{name}"] = one.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        lines.append(f" _set(self, {name!r}, {value})")
    exec(f"def __init__({', '.join(parameters)}):\n" + ("\n".join(lines) or " pass"), known)
    made: Any = known["__init__"]
    made.__module__, made.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    made.__annotations__ = {**{one.name: one.type for one in own}, "return": None}
    return made  # type: ignore[no-any-return]


def _comparison(names: list[str]) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    values: Callable[[Any], object] = attrgetter(*names) if names else lambda one: ()

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __eq__, __hash__


def _shown(self: Any) -> str:
    shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_to_set(self: object, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _pickling(names: list[str]) -> tuple[Callable[[Any], object], Callable[[Any, Any], None]]:
    def __getstate__(self: Any) -> list[object]:
        return [getattr(self, name) for name in names]

    def __setstate__(self: Any, state: list[object]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    return __getstate__, __setstate__
