"""What is looked for: for each kind the shape of a finding, and the check that it must pass.

No library is used for this. Those that find personal data by its structure bring megabytes of metadata or a language
model into every app (phonenumbers 48 MB, presidio spaCy), and those that find secrets read files. The shapes of API
keys follow what the vendors and detect-secrets publish. National identity numbers have many rules that change, so
python-stdnum checks them (`national_ids`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Flag, auto

from nightschool.redaction import checksums

Span = tuple[int, int, str]
"""Start and end of a finding in a text, and its normal form, from which the pseudonym is made."""


class Trigger(Flag):
    """What a text must hold for a kind to be in it; `prefilter` looks for these in bytes, fast."""

    AT = auto()
    """The sign @ before a letter or digit."""
    DIGITS = auto()
    """Seven digits, with at most two separators between one and the next."""
    DOTS = auto()
    """Four numbers with dots between them."""
    COLONS = auto()
    """Two colons with at most four hexadecimal digits between them."""
    TOKEN = auto()
    """The beginning of a key, a JSON web token or a PEM block."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of secret or personal datum."""

    name: str
    trigger: Trigger
    find: Callable[[str], Iterator[Span]]
    meaning: str


def _whole(match: re.Match[str]) -> str | None:
    return match[0]


def _by(
    pattern: str, normal_form: Callable[[re.Match[str]], str | None] = _whole, *, flags: int = 0
) -> Callable[[str], Iterator[Span]]:
    """A function that finds matches of `pattern` (its group `hit`, where it has one) whose `normal_form` is not None."""
    compiled = re.compile(pattern, flags)
    group: str | int = "hit" if "hit" in compiled.groupindex else 0

    def find(text: str) -> Iterator[Span]:
        for match in compiled.finditer(text):
            if (normal := normal_form(match)) is not None:
                yield *match.span(group), normal

    return find


# --- secrets ----------------------------------------------------------------------------------------------------------
_API_KEYS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS access key id
    r"gh[pousr]_[A-Za-z0-9]{36,255}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,255}",
    r"sk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic and others of the same form
    r"xox[abeoprs]-[A-Za-z0-9-]{10,255}",  # Slack
    r"xapp-[A-Za-z0-9-]{10,255}",
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,255}",  # Stripe
    r"glpat-[A-Za-z0-9_-]{20,255}",  # GitLab
    r"npm_[A-Za-z0-9]{36}",
    r"hf_[A-Za-z0-9]{30,255}",  # Hugging Face
    r"ns-[a-z0-9-]{1,63}-[A-Za-z0-9_-]{43}",  # ours
)
_AWS_SECRET = r"(?i:aws|secret)[^\n]{0,40}?[=:\s\"']{1,4}(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
_API_KEY = re.compile(rf"(?<![A-Za-z0-9])(?P<key>{'|'.join(_API_KEYS)})(?![A-Za-z0-9])|{_AWS_SECRET}")


def _api_keys(text: str) -> Iterator[Span]:
    for match in _API_KEY.finditer(text):
        name = "key" if match["key"] else "secret"
        yield *match.span(name), match[name]


_PEM = r"PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = (  # to its last line, or to the end of the base64 when the last line was cut off
    rf"-----BEGIN (?:[A-Z]{{1,12}} ){{0,3}}{_PEM}"
    rf"(?:[\s\S]{{1,20000}}?-----END (?:[A-Z]{{1,12}} ){{0,3}}{_PEM}|(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{{16,}})*)"
)
_JWT = r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,16384}(?:\.[A-Za-z0-9_-]{0,4096})?"
_URL_PASSWORD = r"://[^\s/:@\"'<>]{0,64}:(?P<hit>[^\s/@\"'<>]{1,256})@(?=[\w.\[-])"

# --- personal data ----------------------------------------------------------------------------------------------------
_EMAIL = r"(?<![\w.%+-])\w[\w.%+'-]{0,63}@(?:\w[\w-]{0,62}\.){1,8}(?P<top>[^\W\d_]{2,24})(?![\w-])"
_FILE_TYPES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js"}  # logo@2x.png is no address
_PHONE = (
    r"(?<![\w+.@/=#-])(?:"
    r"(?:\+|00(?=[1-9]))[1-9](?:[ .()/-]{0,2}\d){7,14}"  # international
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|(?:\(0[1-9]\d{0,3}\)|0[1-9]\d{0,3})(?:[ ./-]?\d){5,9}"  # national, after the trunk prefix 0
    r")(?![\w@#]|[.,/-]\d)"
)
_DATE = re.compile(r"\(?[0-3]?\d[./-][0-3]?\d[./-](?:19|20)\d\d(?!\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}", re.ASCII)
_DIGIT_RUN = re.compile(r"(?<![\w.])\d(?:[ .-]?\d){12,40}(?!\w)", re.ASCII)
_IPV4 = r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\d)"
_IPV6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"


def _address(match: re.Match[str]) -> str | None:
    return None if match["top"].lower() in _FILE_TYPES else match[0].lower()


def _phone(match: re.Match[str]) -> str | None:
    digits = "".join(filter(str.isdigit, match[0]))
    if not 9 <= len(digits) <= 17 or _DATE.match(match[0]):
        return None
    return ("+" if match[0].startswith("+") else "") + digits


def _ip(match: re.Match[str]) -> str | None:
    """A public address; one of a private network, or of the machine itself, identifies nobody."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return None
    return str(address) if address.is_global else None


def _ibans(text: str) -> Iterator[Span]:
    at = 0
    while match := _IBAN.search(text, at):
        at = match.start() + 2
        length = checksums.IBAN_LENGTHS.get(match[0][:2].upper(), 0)
        places = [place for place, char in enumerate(match[0]) if char.isalnum()][:length]
        normal = "".join(match[0][place] for place in places).upper()
        if length and checksums.iban(normal):
            at = match.start() + places[-1] + 1
            yield match.start(), at, normal


def _cards(text: str) -> Iterator[Span]:
    for match in _DIGIT_RUN.finditer(text):
        for start, end in checksums.find_cards(match[0]):
            normal = "".join(filter(str.isdigit, match[0][start:end]))
            yield match.start() + start, match.start() + end, normal


def _ips(text: str) -> Iterator[Span]:
    yield from _ipv4(text)
    yield from _ipv6(text)


_ipv4, _ipv6 = _by(_IPV4, _ip), _by(_IPV6, _ip)

# In the order in which they are looked for: a longer shape before one that may be a part of it.
_ALL = (
    Kind("private-key", Trigger.TOKEN, _by(_PRIVATE_KEY), "a PEM private key"),
    Kind("jwt", Trigger.TOKEN, _by(_JWT), "a JSON web token"),
    Kind("url-password", Trigger.AT, _by(_URL_PASSWORD, lambda match: match["hit"]), "the password in a URL"),
    Kind(
        "api-key", Trigger.TOKEN, _api_keys, "a key of AWS, GitHub, OpenAI, Anthropic, Slack, Google, Stripe, GitLab... or ours"
    ),
    Kind("email", Trigger.AT, _by(_EMAIL, _address), "an e-mail address"),
    Kind("iban", Trigger.DIGITS, _ibans, "a bank account (IBAN), by length and check digits"),
    Kind("card", Trigger.DIGITS, _cards, "a payment card, by issuer, length and check digit"),
    Kind("ip", Trigger.DOTS | Trigger.COLONS, _ips, "a public IPv4 or IPv6 address"),
    Kind("phone", Trigger.DIGITS, _by(_PHONE, _phone), "a telephone number as people write it"),
)
KINDS = {kind.name: kind for kind in _ALL}
DEFAULT_KINDS = tuple(KINDS)
