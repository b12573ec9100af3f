"""What is found in a text and what is not, what takes its place, and which rules a tenant may write."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightschool.errors import ConfigError
from nightschool.outcomes.record import Outcome
from nightschool.redaction import KINDS, Rules, prefilter
from nightschool.redaction.checksums import iban, luhn
from nightschool.redaction.redactor import UNREADABLE, Redactor

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq2\nabcdefghijklmnopqrst\n-----END RSA PRIVATE KEY-----"

FOUND: dict[str, list[str]] = {
    "email": ["anna.meyer@example.com", "a+b@mail.example.co.uk", "o'neil@example.org", "jörg@müller.de"],
    "phone": [
        "+44 7700 900123",
        "(415) 555-2671",
        "415-555-2671",
        "020 7946 0958",
        "07700900123",
        "06.12.34.56.78",
        "+1 (415) 555 2671",
    ],
    "iban": ["GB29 NWBK 6016 1331 9268 19", "DE89370400440532013000", "nl91abna0417164300", "MT84MALT011000012345MTLCAST001S"],
    "card": ["4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "6011111111111117", "3530111333300000"],
    "ip": ["8.8.8.8", "2a02:c7f:be5a:f00d::1", "2a02:c7f:be5a:f00d:1:2:3:4"],
    "jwt": [JWT],
    "private-key": [PEM, PEM[:70]],
    "api-key": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 6,
        "sk-proj-" + "a1B2" * 8,
        "sk-ant-api03-" + "a1B2" * 8,
        "xoxb-123456789012-abcdefABCDEF",
        "AIza" + "a1B2c" * 7,
        "sk_live_" + "a1B2" * 6,
        "glpat-" + "a1B2" * 5,
        "npm_" + "a1B2" * 9,
        "hf_" + "aBcDe" * 7,
        "ns-acme-" + "a1B2c3D" * 6 + "x",
    ],
    "url-password": ["hunter2"],
}
INSIDE: dict[str, str] = {"url-password": "postgres://bob:{}@db.example.internal/x"}
NOT_FOUND = [
    "due 01.02.2026, or 2026-11-21 12:30:45, order 1234 5678",
    "order 12345678901234567 and 1700000000000",
    "GB29 NWBK 6016 1331 9268 18",
    "card 4111 1111 1111 1112",
    "192.168.0.1, 127.0.0.1, ::1, fe80::1, 10.0.0.1",
    "version 1.2.3 at 12:30:45, ratio 3:4:5",
    "logo@2x.png and a@b",
    "risk-averse-people-who-like-hyphens and task-based-learning-at-night",
    "3f2504e0-4f89-41d3-9a0c-0305e82c3301 and chatcmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "£61.40 when it's always 34, in 30 days, 10k at 4.5%",
    "https://example.com/a:b@c",
    "-----BEGIN PUBLIC KEY-----",
]
CASES = [(kind, text) for kind, texts in FOUND.items() for text in texts]


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(Rules(), "secret")


def redacted(redactor: Redactor, text: str) -> tuple[str, Counter[str]]:
    found: Counter[str] = Counter()
    return redactor.text(text, found), found


# --- kinds ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "text"), CASES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(CASES)])
def test_every_kind_is_found_wherever_it_stands(redactor: Redactor, kind: str, text: str) -> None:
    """In a sentence, at an end of a text, in quotes, beside punctuation or alone on a line: all of it is replaced."""
    inside = INSIDE.get(kind, "{}").format(text)
    for before, after in (("", ""), ("my data: ", ", thanks."), ('"', '"'), ("a\n", "\nb"), ("(", ")"), ("née ", " ça")):
        said, found = redacted(redactor, f"{before}{inside}{after}")
        expected = INSIDE.get(kind, "{}").format(f"<{kind.upper().replace('-', '_')}_XXXX>")
        assert re.sub(r"_[0-9a-f]{4}>", "_XXXX>", said) == f"{before}{expected}{after}"
        assert found == {kind: 1}


def test_there_is_a_case_of_every_kind() -> None:
    """A kind without a case in the list above would be untested."""
    assert set(FOUND) == set(KINDS)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_a_finding_stays(redactor: Redactor, text: str) -> None:
    """Dates, prices, versions, ids, private addresses and numbers with wrong check digits are left alone."""
    assert redacted(redactor, text) == (text, Counter())


def test_the_help_desk_messages_hold_nothing(redactor: Redactor) -> None:
    """The demo's data goes through unchanged, so that redaction costs it nothing."""
    from pathlib import Path

    for path in sorted((Path(__file__).parents[3] / "examples" / "helpdesk").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            assert redacted(redactor, text)[0] == text


def test_a_number_is_the_longest_kind_it_can_be(redactor: Redactor) -> None:
    """An account number is not a telephone number, and two numbers side by side are two findings."""
    said, found = redacted(redactor, "GB29 NWBK 6016 1331 9268 19 DE89370400440532013000, 4111 1111 1111 1111 12/27")
    assert found == {"iban": 2, "card": 1} and said.endswith("> 12/27")


# --- pseudonyms -------------------------------------------------------------------------------------------------------
def test_one_person_has_one_pseudonym_however_spelled(redactor: Redactor) -> None:
    """Case, spaces and separators do not make another pseudonym; another person, kind or secret does."""
    same = {redacted(redactor, text)[0] for text in ("Anna@Example.com", "anna@example.com")}
    cards = {redacted(redactor, text)[0] for text in ("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111")}
    assert len(same) == len(cards) == 1
    assert redacted(redactor, "bob@example.com")[0] not in same
    assert redacted(Redactor(Rules(), "other"), "anna@example.com")[0] not in same


def test_redacting_twice_changes_nothing(redactor: Redactor) -> None:
    """The collector reads what the SDK redacted, so a pseudonym must not be a finding."""
    said, _ = redacted(redactor, json.dumps([inside for kind, text in CASES for inside in [INSIDE.get(kind, "{}").format(text)]]))
    assert redacted(redactor, said) == (said, Counter())


def test_a_secret_is_needed() -> None:
    """With an empty secret anybody could compute the pseudonym of a known text."""
    with pytest.raises(ConfigError, match="empty"):
        Redactor(Rules(), "")


# --- JSON -------------------------------------------------------------------------------------------------------------
def test_json_is_read_as_json(redactor: Redactor) -> None:
    """Escapes, keys, nested JSON texts and card numbers as numbers are all seen, and the result is JSON."""
    inner = json.dumps({"to": "anna@example.com"})
    text = json.dumps(
        [{"role": "user", "parts": [{"content": "x\nanna@example.com", "arguments": inner, "n": 4111111111111111}]}]
    )
    said, found = redacted(redactor, text.replace("@", "\\u0040"))
    part = json.loads(said)[0]["parts"][0]
    pseudonym = part["content"].partition("\n")[2]
    assert json.loads(part["arguments"]) == {"to": pseudonym} and pseudonym.startswith("<EMAIL_")
    assert part["n"].startswith("<CARD_") and found == {"email": 2, "card": 1}
    assert "@" not in redacted(redactor, '{"a@example.com": 1}')[0]


def test_a_key_that_stands_twice_hides_nothing(redactor: Redactor) -> None:
    """A JSON parser keeps the last of two equal keys; the first is redacted all the same."""
    assert "anna@" not in redacted(redactor, '{"a": "anna@example.com", "a": "ok"}')[0]


def test_what_cannot_be_read_does_not_leave(redactor: Redactor) -> None:
    """JSON that is nested too deeply to be read is not passed on unchecked."""
    said, found = redacted(redactor, "[" * 100_000 + '"anna@example.com"' + "]" * 100_000)
    assert said == UNREADABLE and found == {"unreadable": 1}


def test_pictures_stay_as_they_are(redactor: Redactor) -> None:
    """Base64 of an image is not searched: a match by chance would destroy the image."""
    text = json.dumps([{"type": "blob", "content": "AKIAIOSFODNN7EXAMPLE"}, {"url": "data:image/png;base64,+12345678901"}])
    assert redacted(redactor, text)[0] == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_comes_through(data: object) -> None:
    """No data makes redaction fail, and the result is JSON again."""
    text = json.dumps([data, "anna@example.com"])
    said, _ = redacted(Redactor(Rules(), "secret"), text)
    assert "anna@" not in said
    said.encode()
    assert len(json.loads(said)) == 2


# --- the prefilter ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrap", [str, json.dumps, lambda text: json.dumps(json.dumps(text)), lambda text: json.dumps(text, ensure_ascii=False)]
)
@pytest.mark.parametrize(("kind", "text"), CASES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(CASES)])
def test_the_prefilter_never_says_no_wrongly(kind: str, text: str, wrap: Callable[[str], str]) -> None:
    """Whatever a kind finds, the prefilter sees in the bytes, also in escaped JSON and between random bytes."""
    noise = random.Random(kind).randbytes(64)
    inside = f"née\n{INSIDE.get(kind, '{}').format(text)}\t"
    raw = noise + wrap(inside).encode() + noise
    automaton = prefilter._automaton()
    assert prefilter._triggers_in(raw) and automaton and prefilter._may_hold(automaton, raw)
    assert Rules(kinds=[kind]).may_be_in(raw * 4)


def test_the_prefilter_says_no_to_ordinary_traffic() -> None:
    """Ids in hexadecimal, prices, times and model names do not make a request be parsed."""
    raw = b'\n c4c74dc3dd76019808fe3850438a1b41JA\x12 3f2504e0-4f89-41d3-9a0c-0305e82c3301 Qwen2.5-7B 61.40 at 2026-11-21 {"role":"user"}'
    assert not prefilter._triggers_in(raw) and not Rules().may_be_in(raw) and not Rules().may_be_in(raw * 4)


@given(st.binary(min_size=256) | st.text("0123456789abcdef-@.:/ AKIAeyJskghp_", min_size=256).map(str.encode))
def test_both_ways_of_the_prefilter_agree(raw: bytes) -> None:
    """RE2's automaton sees whatever Python's patterns see: with or without it, the same is found."""
    automaton = prefilter._automaton()
    assert automaton is not None
    if prefilter._triggers_in(raw):
        assert prefilter._may_hold(automaton, raw)


# --- rules ------------------------------------------------------------------------------------------------------------
def test_a_tenant_may_allow_deny_and_add() -> None:
    """Allowed texts and domains stay, denied words and own patterns go, kinds not named are not looked for."""
    rules = Rules(
        kinds=["email"], patterns=["ticket: TCK-[0-9]{6}"], allow=["Support@Acme.com", "@example.org"], deny=["Project Falcon"]
    )
    said, found = redacted(
        Redactor(rules, "s"), "support@acme.com x@example.org y@acme.com TCK-123456 project falcon falcons 8.8.8.8"
    )
    assert found == {"email": 1, "ticket": 1, "denied": 1}
    assert re.sub(r"_[0-9a-f]{4}>", ">", said) == "support@acme.com x@example.org <EMAIL> <TICKET> <DENIED> falcons 8.8.8.8"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"kinds": ["e-mail"]}, "kind 'e-mail' is unknown; allowed are private-key"),
        ({"patterns": ["no colon"]}, "name: regular expression"),
        ({"patterns": ["email: x"]}, "name of a kind there is"),
        ({"patterns": ["a: (["]}, "is not a regular expression"),
        ({"patterns": ["a: x?"]}, "matches the empty text"),
        ({"patterns": ["a: (a+)+b"]}, "too many ways"),
        ({"patterns": ["a: a{1,30}a{1,30}a{1,30}b"]}, "too many ways"),
        ({"patterns": ["a: (a|aa){1,30}b"]}, "too many ways"),
        ({"patterns": ["a: [a-z]++@"]}, "too many ways"),
        ({"patterns": ["a: [a-z]{1,100000}+@"]}, "too many ways"),
        ({"patterns": [r"a: (x)\1"]}, "too many ways"),
        ({"patterns": ["a: " + "x" * 501]}, "allowed are 1 to 500"),
        ({"deny": ["a"]}, "two characters"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, list[str]], said: str) -> None:
    """Each mistake is named when the rules are made, also a pattern with which a hostile text stops the collector."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        Rules(**rules)


@pytest.mark.parametrize(
    "pattern", ["EMP-[0-9]{4,8}", "(?:AB|CD)[0-9]{6}", "[a-z]{1,64}+@[a-z]{1,64}+", "(?i)secret: [a-z]{3,20}"]
)
def test_good_patterns_are_taken(pattern: str) -> None:
    """Bounded repeats, alternatives, possessive repeats and flags are fine."""
    Rules(patterns=[f"own: {pattern}"])


def test_without_any_rule_nothing_is_done() -> None:
    """Rules without kinds, patterns and words switch redaction off."""
    assert redacted(Redactor(Rules(kinds=()), "s"), "anna@example.com")[0] == "anna@example.com"


# --- check digits -----------------------------------------------------------------------------------------------------
@given(
    st.text("0123456789", min_size=2, max_size=19),
    st.sampled_from(["GB", "DE", "NL"]),
    st.text("0123456789", min_size=20, max_size=20),
)
def test_check_digits_agree_with_python_stdnum(digits: str, country: str, account: str) -> None:
    """Luhn and IBAN as the library of the `pii` extra has them; it is too large for every app."""
    from stdnum import iban as reference_iban
    from stdnum import luhn as reference_luhn

    assert luhn(digits) == reference_luhn.is_valid(digits)
    bban = {"GB": "NWBK" + account[:14], "DE": account[:18], "NL": "ABNA" + account[:10]}[country]
    text = country + reference_iban.calc_check_digits(f"{country}00{bban}") + bban
    assert iban(text) and not iban(f"{text[:-1]}{(int(text[-1]) + 1) % 10}")


# --- national identity numbers ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "text", "wrong"),
    [
        ("us-ssn", "536-90-4399", "000-90-4399"),
        ("br-cpf", "390.533.447-05", "390.533.447-06"),
        ("nl-bsn", "1112.22.333", "1112.52.333"),
        ("pl-pesel", "44051401359", "44051401358"),
        ("gb-nhs", "943-476-5870", "943-476-5871"),
        ("es-dni", "54362315-K", "54362315-Z"),
        ("in-aadhaar", "2341 2341 2346", "2341 2341 2347"),
        ("fr-nir", "2 95 10 99 126 111 93", "2 95 10 99 126 111 94"),
        ("de-idnr", "36 574 261 809", "36 574 261 890"),
        ("se-personnummer", "880320-0016", "880320-0018"),
    ],
)
def test_national_numbers_are_found_when_asked_for(kind: str, text: str, wrong: str) -> None:
    """Off by default; with the kind named, a valid number is replaced and one with wrong check digits stays."""
    asked = Redactor(Rules(kinds=[kind]), "s")
    assert redacted(asked, f"id {text}.") == (f"id {redacted(asked, text)[0]}.", Counter({kind: 1}))
    assert redacted(asked, f"id {wrong}.")[0] == f"id {wrong}."
    assert kind not in Rules().kinds


# --- outcomes ---------------------------------------------------------------------------------------------------------
def test_an_outcome_has_the_pseudonyms_of_its_trace(redactor: Redactor) -> None:
    """Correction, comment and metadata have the same pseudonym as the answer; ids that join still join."""
    prompt, _ = redacted(redactor, "write to anna@example.com")
    outcome = Outcome(
        {"conversation_id": "wa:+447700900123"},
        "edit",
        final_text="Write to Anna@example.com!",
        comment="anna@example.com",
        metadata={"from": "anna@example.com", "n": 1},
        source_id="mia",
    )
    said = redactor.outcome(outcome)
    pseudonym = prompt.removeprefix("write to ")
    assert said.final_text == f"Write to {pseudonym}!"
    assert (said.comment, said.metadata) == (pseudonym, {"from": pseudonym, "n": 1})
    assert said.target == {"conversation_id": redactor.identifier("wa:+447700900123", Counter())}
    assert re.fullmatch("[0-9a-f]{32}", said.target["conversation_id"])
    assert said.source_id == redactor.subject("mia") != "mia"
    assert redactor.outcome(said) == said
    assert redactor.counts == {"email": 3, "phone": 1}


def test_the_hash_of_an_answer_that_was_redacted_goes(redactor: Redactor) -> None:
    """After redaction the answer in the trace has another hash; an edit without findings keeps its own."""
    for text, kept in (("Dear anna@example.com", None), ("Dear you", "0" * 64)):
        outcome = Outcome({"trace_id": "1" * 32}, "edit", final_text=text, original_sha256="0" * 64)
        assert redactor.outcome(outcome).original_sha256 == kept


def test_an_outcome_without_findings_is_the_same(redactor: Redactor) -> None:
    """Nothing is copied, and a rater that is a pseudonym already stays."""
    outcome = Outcome({"trace_id": "1" * 32}, "thumb", value=True, source_id="0" * 32)
    assert redactor.outcome(outcome) is outcome


def test_a_pseudonym_that_is_longer_loses_no_outcome(redactor: Redactor) -> None:
    """A comment at its limit is cut, so that the next reader of the record does not refuse it."""
    outcome = Outcome({"trace_id": "1" * 32}, "thumb", value=True, comment="8.8.8.8 " * 1024)
    said = redactor.outcome(outcome)
    assert said.comment is not None and len(said.comment) == 8 << 10 and "8.8.8.8" not in said.comment
