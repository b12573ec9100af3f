"""One signature for a method and for everything that passes its arguments on.

`nightschool.outcome` has twenty parameters and is also a method of `Client`. They are written once, where they are
used; what only passes them on takes its parameters from there, for type checkers, editors and `help()` alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def method_like(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Decorate a method that passes everything on to `method`."""
    signature = inspect.signature(method)

    def decorate(passes_on: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        passes_on.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature and help() read
        return passes_on

    return decorate


def function_like(method: Callable[Concatenate[Any, P], R]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Decorate a function that passes everything on to `method` of some object."""
    signature = inspect.signature(method)
    without_self = signature.replace(parameters=list(signature.parameters.values())[1:])

    def decorate(passes_on: Callable[..., R]) -> Callable[P, R]:
        passes_on.__signature__ = without_self  # type: ignore[attr-defined]
        return passes_on

    return decorate
