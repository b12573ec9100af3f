"""Check digits, which tell a card or account number from any other long number."""

from __future__ import annotations

from collections.abc import Iterator

# Country and length of its IBAN (IBAN registry, release 99). The length says where in a text an IBAN ends.
_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18"
    " FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20"
    " LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24"
    " SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
IBAN_LENGTHS = {item[:2]: int(item[2:]) for item in _LENGTHS.split()}

# First digits, and the lengths of card numbers of that network, likeliest first (ISO/IEC 7812 ranges in use).
_CARDS: tuple[tuple[range, tuple[int, ...]], ...] = (
    (range(400000, 500000), (16, 19, 13)),  # Visa
    (range(510000, 560000), (16,)),  # Mastercard
    (range(222100, 272100), (16,)),  # Mastercard
    (range(340000, 350000), (15,)),  # American Express
    (range(370000, 380000), (15,)),
    (range(601100, 601200), (16, 19)),  # Discover
    (range(644000, 660000), (16, 19)),
    (range(622126, 622926), (16, 19)),  # UnionPay
    (range(620000, 630000), (16, 17, 18, 19)),
    (range(352800, 359000), (16, 19)),  # JCB
    (range(300000, 306000), (14, 16)),  # Diners Club
    (range(360000, 370000), (14,)),
    (range(380000, 400000), (14, 16)),
    (range(560000, 590000), (16, 18, 19)),  # Maestro
    (range(676000, 677000), (16, 18, 19)),
)


def luhn(digits: str) -> bool:
    """Whether the last of `digits` is the check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if place % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def card_lengths(digits: str) -> tuple[int, ...]:
    """The lengths of card numbers that start with `digits`, likeliest first; none when no network has such numbers."""
    issuer = int(digits[:6])
    return next((lengths for issuers, lengths in _CARDS if issuer in issuers), ())


def iban(text: str) -> bool:
    """Whether `text`, in upper case without spaces, is an IBAN, by length and check digits (ISO 13616)."""
    if len(text) != IBAN_LENGTHS.get(text[:2]) or not text.isascii():
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every card number in `text`, a run of digits with single separators."""
    places = [place for place, char in enumerate(text) if char.isdigit()]
    digits = "".join(text[place] for place in places)
    starts_group = [place == 0 or place - 1 not in places for place in places]
    at = 0
    while at <= len(digits) - 13:
        length = _card_length(digits, at, starts_group) if starts_group[at] else 0
        if length:
            yield places[at], places[at + length - 1] + 1
        at += length or 1


def _card_length(digits: str, at: int, starts_group: list[bool]) -> int:
    """How many digits from `at` are a card number that ends where a group ends; 0 when none are."""
    for length in card_lengths(digits[at : at + 6]):
        end = at + length
        if end <= len(digits) and (end == len(digits) or starts_group[end]) and luhn(digits[at:end]):
            return length
    return 0
