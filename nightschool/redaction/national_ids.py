"""National identity numbers, found only when asked for: shapes here, rules and check digits in python-stdnum."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from nightschool.errors import MissingExtraError

# Kind -> (module of stdnum, shape, meaning). A shape is loose; a match counts only when the module says that it is
# valid.
_IDS = {
    "br-cpf": ("stdnum.br.cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", "Brazil, CPF"),
    "de-idnr": ("stdnum.de.idnr", r"[1-9]\d ?\d{3} ?\d{3} ?\d{3}", "Germany, tax identification number"),
    "es-dni": ("stdnum.es.dni", r"\d{8}[ -]?[A-Z]", "Spain, DNI"),
    "fr-nir": ("stdnum.fr.nir", r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", "France, NIR"),
    "gb-nhs": ("stdnum.gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "United Kingdom, NHS number"),
    "in-aadhaar": ("stdnum.in_.aadhaar", r"[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}", "India, Aadhaar"),
    "nl-bsn": ("stdnum.nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", "Netherlands, BSN"),
    "pl-pesel": ("stdnum.pl.pesel", r"\d{11}", "Poland, PESEL"),
    "se-personnummer": ("stdnum.se.personnummer", r"\d{6}(?:\d{2})?[-+]?\d{4}", "Sweden, personnummer"),
    "us-ssn": ("stdnum.us.ssn", r"\d{3}-\d{2}-\d{4}", "United States, social security number"),
}
NATIONAL_IDS = {name: meaning for name, (_, _, meaning) in _IDS.items()}


@cache
def _validator(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError("redaction of national identity numbers", "pii", error.name or "stdnum") from None


@cache
def _shape(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-]){_IDS[name][1]}(?![\w-])", re.ASCII)


def check_installed(name: str) -> None:
    """`MissingExtraError` without python-stdnum: an error at the start, so that nothing is missed silently."""
    _validator(_IDS[name][0])


def find(name: str, text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and normal form of every valid number of kind `name` in `text`."""
    module = _validator(_IDS[name][0])
    for match in _shape(name).finditer(text):
        if module.is_valid(match[0]):
            yield *match.span(), module.compact(match[0])
