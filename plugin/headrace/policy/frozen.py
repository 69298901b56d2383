"""Classes of values that cost next to nothing to make: `frozen` for plans and facts, `slotted` for what one call has.

They are what `@dataclass(frozen=True, slots=True)` and `@dataclass(slots=True)` make. For each of those stdlib writes
and compiles up to eight methods, and an import of headrace makes 130 classes: 0.77 and 0.28 ms each were a tenth of all
that it took (CPython 3.13; 0.03 ms here). Most of them are not needed in most processes. So `__init__` is compiled when
a first object is made, and `fields` are found when somebody asks for them. The other methods need no more than names.

They are dataclasses all the same: `fields`, `replace`, `asdict` and `match` work, and so do copies and pickles.
What none of them has so far is not supported: inheritance of fields, `__post_init__`, `InitVar`, `kw_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """*cls* as a frozen dataclass with slots."""
    made, names, compared = _with_slots(cls, setter="_set(self, {name!r}, {value})")
    made.__eq__, made.__hash__ = _comparison(compared)
    made.__setattr__, made.__delattr__ = _refuse_to_set, _refuse_to_delete
    made.__getstate__, made.__setstate__ = _pickling(names)
    return made  # type: ignore[no-any-return]


@overload
def slotted(cls: type[T], /) -> type[T]: ...
@overload
def slotted(*, eq: bool) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(field_specifiers=(field,))
def slotted(cls: type[T] | None = None, /, *, eq: bool = True) -> type[T] | Callable[[type[T]], type[T]]:
    """*cls* as a dataclass with slots whose values may be set. Without *eq* each object equals itself alone."""

    def make(cls: type[T]) -> type[T]:
        made, _, compared = _with_slots(cls, setter="self.{name} = {value}")
        if eq:
            made.__eq__, _ = _comparison(compared)
            made.__hash__ = None
        return made  # type: ignore[no-any-return]

    return make if cls is None else make(cls)


def _with_slots(cls: type[object], *, setter: str) -> tuple[Any, list[str], list[str]]:
    """*cls* made anew with slots for its fields, their names, and the names of those that are compared."""
    annotations = cls.__annotations__
    names = [name for name, one in annotations.items() if not str(one).startswith("ClassVar")]
    content = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    defaults = {name: content.pop(name) for name in names if name in content}
    content["__slots__"] = content["__match_args__"] = tuple(names)
    # Any: methods are set below, which mypy allows on no class.
    kind: Any = type(cls)
    made: Any = kind(cls.__name__, cls.__bases__, content)
    made.__init__ = _Initializer(made, names, defaults, setter)
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        setattr(made, name, _Described(made, defaults, name))
    made.__repr__ = _shown
    made.__replace__ = _replaced
    given = defaults.get
    compared = [name for name in names if not isinstance(one := given(name), Field) or one.compare]
    return made, names, compared


class _Initializer:
    """Stands for `__init__` until somebody asks for it: a first object, or `inspect.signature`.

    A function is compiled for each class: a generic one would cost each object.
    """

    __slots__ = ("_defaults", "_made", "_names", "_setter")

    def __init__(self, made: Any, names: list[str], defaults: Mapping[str, object], setter: str) -> None:
        self._made, self._names, self._defaults, self._setter = made, names, defaults, setter

    def __get__(self, instance: object | None, owner: type[object]) -> Any:
        self._made.__init__ = compiled = self._compiled()
        return compiled if instance is None else compiled.__get__(instance, owner)

    def _compiled(self) -> Any:
        known: dict[str, object] = {"_set": object.__setattr__, "_missing": MISSING}
        parameters, lines = ["self"], []
        for name in self._names:
            value, default = name, self._defaults.get(name, MISSING)
            factory: object = MISSING
            if isinstance(default, Field):
                factory, default = default.default_factory, default.default
            if factory is not MISSING:
                known[f"_make_{name}"] = factory
                parameters.append(f"{name}=_missing")
                value = f"_make_{name}() if {name} is _missing else {name}"
            elif default is not MISSING:
                known[f"_default_{name}"] = default
                parameters.append(f"{name}=_default_{name}")
            else:
                parameters.append(name)
            lines.append(f" {self._setter.format(name=name, value=value)}")
        exec(f"def __init__({', '.join(parameters)}):\n" + ("\n".join(lines) or " pass"), known)
        function: Any = known["__init__"]
        function.__module__ = self._made.__module__
        function.__qualname__ = f"{self._made.__qualname__}.__init__"
        kinds = self._made.__annotations__
        function.__annotations__ = {**{name: kinds[name] for name in self._names}, "return": None}
        return function


class _Described:
    """Stands for what stdlib keeps about a dataclass under *name* (its fields, its options) until somebody asks for it.

    stdlib makes it, for a class with the same annotations and defaults of which nothing else is used.
    """

    __slots__ = ("_defaults", "_made", "_name")

    def __init__(self, made: Any, defaults: Mapping[str, object], name: str) -> None:
        self._made, self._defaults, self._name = made, defaults, name

    def __get__(self, instance: object | None, owner: type[object]) -> Any:
        made = self._made
        content = {"__annotations__": made.__annotations__, "__module__": made.__module__, **self._defaults}
        of_stdlib: Any = dataclass(init=False, repr=False, eq=False)(type(made.__name__, (), content))
        found = getattr(of_stdlib, self._name)
        setattr(made, self._name, found)
        return found


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


def _replaced(self: Any, /, **changes: Any) -> Any:
    return replace(self, **changes)


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
