"""`frozen` and `slotted` make what `@dataclass(slots=True)` makes, frozen or not: each claim is asked of both."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import pprint
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest

import headrace
from headrace.policy.frozen import frozen, slotted


@dataclass(frozen=True, slots=True)
class Stock:
    """A place.

    Attributes:
        tags: Its own list for each.
    """

    kind: ClassVar[str] = "place"
    name: str
    secret: str = field(repr=False)
    size: float = 1.5
    tags: list[str] = field(default_factory=list)
    seen: int = field(default=0, compare=False)

    @property
    def line(self) -> str:
        return f"{self.name}: {self.size}"


@frozen
class Ours:
    """A place.

    Attributes:
        tags: Its own list for each.
    """

    kind: ClassVar[str] = "place"
    name: str
    secret: str = field(repr=False)
    size: float = 1.5
    tags: list[str] = field(default_factory=list)
    seen: int = field(default=0, compare=False)

    @property
    def line(self) -> str:
        return f"{self.name}: {self.size}"


@dataclass(frozen=True, slots=True)
class StockEmpty:
    """Nothing."""


@frozen
class OursEmpty:
    """Nothing."""


@dataclass(slots=True)
class StockOpen:
    """What one call has."""

    kind: ClassVar[str] = "call"
    name: str
    secret: str = field(repr=False)
    size: float = 1.5
    tags: list[str] = field(default_factory=list)
    seen: int = field(default=0, compare=False)


@slotted
class OursOpen:
    """What one call has."""

    kind: ClassVar[str] = "call"
    name: str
    secret: str = field(repr=False)
    size: float = 1.5
    tags: list[str] = field(default_factory=list)
    seen: int = field(default=0, compare=False)


@dataclass(slots=True, eq=False)
class StockAlone:
    """One of its own."""

    name: str


@slotted(eq=False)
class OursAlone:
    """One of its own."""

    name: str


both = pytest.mark.parametrize("made", [Stock, Ours])
any_kind = pytest.mark.parametrize("made", [Stock, Ours, StockOpen, OursOpen])
both_open = pytest.mark.parametrize("made", [StockOpen, OursOpen])
both_alone = pytest.mark.parametrize("made", [StockAlone, OursAlone])
both_empty = pytest.mark.parametrize("made", [StockEmpty, OursEmpty])


@any_kind
def test_values_come_by_position_or_by_name_and_defaults_stand_in(made: Callable[..., Any]) -> None:
    one, other = made("a", "b"), made(name="a", secret="b", size=2, tags=["x"], seen=4)
    assert (one.name, one.secret, one.size, one.tags, one.seen) == ("a", "b", 1.5, [], 0)
    assert (other.name, other.secret, other.size, other.tags, other.seen) == ("a", "b", 2, ["x"], 4)
    assert one.tags is not made("a", "b").tags
    assert one.kind == made.kind


@both
def test_methods_of_the_class_are_there(made: Callable[..., Any]) -> None:
    assert made("a", "b").line == "a: 1.5"


@any_kind
def test_a_value_that_is_missing_or_unknown_is_refused(made: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'secret'"):
        made("a")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        made("a", "b", colour="red")


@both
def test_nothing_can_be_set_or_deleted(made: Callable[..., Any]) -> None:
    one = made("a", "b")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        one.name = "c"
    with pytest.raises((FrozenInstanceError, TypeError)):  # TypeError: stdlib's own, before 3.13
        one.colour = "red"
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del one.name
    assert one.name == "a"
    assert not hasattr(one, "__dict__")


@both
def test_equal_is_what_has_the_same_class_and_equal_values_that_count(made: Callable[..., Any]) -> None:
    assert made("a", "b") == made("a", "b", seen=7)
    assert made("a", "b") != made("a", "c")
    assert made("a", "b") != ("a", "b", 1.5, [])
    assert Stock("a", "b") != Ours("a", "b")
    assert made("a", "b").__eq__("a") is NotImplemented


@both
def test_equal_ones_have_one_hash(made: Callable[..., Any]) -> None:
    one, other = made("a", "b", tags=("x",)), made("a", "b", tags=("x",), seen=7)
    assert hash(one) == hash(other)
    assert len({one, other, made("c", "b", tags=())}) == 2
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        hash(made("a", "b"))


@any_kind
def test_repr_shows_the_values_but_those_that_are_hidden(made: Callable[..., Any]) -> None:
    assert repr(made("a", "b")) == f"{made.__name__}(name='a', size=1.5, tags=[], seen=0)"


@any_kind
def test_it_is_a_dataclass_to_the_functions_of_stdlib(made: Callable[..., Any]) -> None:
    one = made("a", "b", tags=["x"])
    assert is_dataclass(one)
    assert [each.name for each in fields(one)] == ["name", "secret", "size", "tags", "seen"]
    assert replace(one, size=3.0) == made("a", "b", 3.0, ["x"])
    assert asdict(one) == {"name": "a", "secret": "b", "size": 1.5, "tags": ["x"], "seen": 0}
    match one:
        case Stock(name, _, size) | Ours(name, _, size) | StockOpen(name, _, size) | OursOpen(name, _, size):
            assert (name, size) == ("a", 1.5)
        case _:
            pytest.fail("no match")


@any_kind
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_comes_back_equal(made: Callable[..., Any], protocol: int) -> None:
    one = made("a", "b", tags=["x"], seen=7)
    back = pickle.loads(pickle.dumps(one, protocol))
    assert (back, back.seen, type(back)) == (one, 7, type(one))


@any_kind
def test_a_copy_shares_the_values_and_a_deep_one_does_not(made: Callable[..., Any]) -> None:
    one = made("a", "b", tags=["x"])
    assert copy.copy(one) == one == copy.deepcopy(one)
    assert copy.copy(one).tags is one.tags
    assert copy.deepcopy(one).tags is not one.tags


@any_kind
def test_the_signature_says_what_the_fields_are(made: Callable[..., Any]) -> None:
    parameters = inspect.signature(made).parameters
    assert list(parameters) == ["name", "secret", "size", "tags", "seen"]
    assert [one.annotation for one in parameters.values()] == ["str", "str", "float", "list[str]", "int"]
    assert (parameters["name"].default, parameters["size"].default) == (inspect.Parameter.empty, 1.5)


@both_empty
def test_a_class_without_fields_is_all_alike(made: Callable[..., Any]) -> None:
    assert made() == made()
    assert hash(made()) == hash(made())
    assert repr(made()) == f"{made.__name__}()"
    assert copy.copy(made()) == made()
    assert pickle.loads(pickle.dumps(made())) == made()


@any_kind
def test_a_printer_of_dataclasses_can_show_it(made: Callable[..., Any]) -> None:
    assert pprint.pformat(made("a", "b")) == repr(made("a", "b"))


@any_kind
@pytest.mark.skipif(not hasattr(copy, "replace"), reason="of Python 3.13")
def test_a_copy_can_have_other_values(made: Callable[..., Any]) -> None:
    changed: Any = copy.replace(made("a", "b"), size=3.0)  # type: ignore[attr-defined, unused-ignore]
    assert (type(changed), changed.name, changed.size) == (made, "a", 3.0)


@both_open
def test_what_is_not_frozen_can_be_set_and_has_no_hash(made: Callable[..., Any]) -> None:
    one = made("a", "b")
    one.name = "c"
    assert one == made("c", "b", seen=7)
    assert one != made("a", "b")
    with pytest.raises(TypeError, match="unhashable type"):
        hash(one)
    with pytest.raises(AttributeError):
        one.colour = "red"


@both_alone
def test_what_is_one_of_its_own_equals_itself_alone(made: Callable[..., Any]) -> None:
    one = made("a")
    assert one == one
    assert one != made("a")
    assert one in {one}


def test_each_class_of_the_package_has_a_slot_for_each_field_and_no_other() -> None:
    """What is a field is read off the annotations here, by text; stdlib says what is one."""
    known = set()
    for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if module.name.endswith(("__main__", ".django", ".otel")):
            continue  # a program; needs what an application may not have
        for made in vars(importlib.import_module(module.name)).values():
            if isinstance(made, type) and made.__module__ == module.name and is_dataclass(made):
                known.add(made)
    assert len(known) > 100
    for made in known:
        names = tuple(one.name for one in fields(made))
        assert made.__match_args__ == names, made
        if "__slots__" in vars(made):
            assert vars(made)["__slots__"] == names, made
        assert list(inspect.signature(made).parameters) == list(names), made
