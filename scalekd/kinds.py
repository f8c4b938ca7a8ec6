"""What a setting's value may be: checking it against its annotation, and saying it in words."""

from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scalekd.errors import InputError


def check_kinds(settings: Any, prefix: str = "") -> None:
    """Raise InputError where a field of a dataclass has a value that its annotation does not allow.

    The command line and YAML give values of the right kinds; Python gives anything.

    Args:
        settings: an instance of the dataclass.
        prefix: put before a field's name in the message, such as "data.".
    """
    kinds: dict[str, Any] = _hints(settings.__class__)
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        if not _is_of(value, kinds[name]):
            shown = repr(value)
            shown = shown if len(shown) < 100 else shown[:100] + "…"
            raise InputError(f"{prefix}{name} is {shown}: expected {describe_kind(kinds[name])}")


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return any(value is part or (value == part and type(value) is type(part)) for part in parts)
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_of(each, parts[0]) for each in value)
    if origin is tuple and parts[-1:] == (...,):
        return isinstance(value, tuple) and all(_is_of(each, parts[0]) for each in value)
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(parts)
        return fits and all(map(_is_of, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(key, parts[0]) for key in value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, NoneType if kind is None else kind)


def describe_kind(kind: Any) -> str:
    """What a value of a setting may be, in words: "a number", "one of 'stop', 'skip'"."""
    parts = get_args(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is list:
        return f"a list, each {describe_kind(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(map(describe_kind, parts))}]"
    if parts and origin is not dict:
        return " or ".join(describe_kind(part) for part in parts if part is not NoneType)
    if is_dataclass(kind) or origin is dict or kind is dict:
        return "a mapping of settings"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
    return words.get(kind, "a path" if kind is Path else "a mapping of settings")
