"""Browser tokens: what was made is read back, and everything else is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool.errors import ConfigError, RecordError
from nightschool.outcomes.tokens import OutcomeKey, TokenClaims, TokenError, TokenVerifier, load_key, mint_token, new_token_id

NOW_S = 1_790_000_000
OLD, NEW = OutcomeKey("k1", b"1" * 32), OutcomeKey("k2", b"2" * 32)
CLAIMS = TokenClaims(
    tenant="acme",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    names=("thumb", "csat"),
    issued_at=NOW_S,
    expires_at=NOW_S + 3600,
    token_id="token-1",
    span_id="b7ad6b7169203331",
    conversation_id="c-17",
    rater="pseudonym",
)
VERIFIER = TokenVerifier({"acme": [NEW, OLD], "globex": [OutcomeKey("k2", b"3" * 32)]})


def parts(token: str) -> tuple[dict[str, Any], str]:
    _, body, signature = token.split(".")
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))), signature


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: Any, key: OutcomeKey = NEW, prefix: str = "nsf1") -> str:
    """A token as anybody with the key can make it, with any claims."""
    text = f"{prefix}.{encoded(payload if isinstance(payload, bytes) else json.dumps(payload).encode())}"
    return f"{text}.{encoded(hmac.new(key.secret, text.encode(), hashlib.sha256).digest())}"


def refused(token: Any, *, now_s: float = NOW_S, verifier: TokenVerifier = VERIFIER) -> TokenError:
    with pytest.raises(TokenError) as caught:
        verifier.verify(token, now_s=now_s)
    return caught.value


def test_a_token_says_what_was_minted() -> None:
    """Every claim comes back, signed by the current key or by the one before."""
    for key in (NEW, OLD):
        token = mint_token(key, CLAIMS)
        assert VERIFIER.verify(token, now_s=NOW_S) == replace(CLAIMS, kid=key.kid)
        assert len(token) < 600
    few = replace(CLAIMS, span_id=None, conversation_id=None, rater=None)
    assert VERIFIER.verify(mint_token(NEW, few), now_s=NOW_S) == replace(few, kid="k2")
    assert few.source_id == "token:token-1"


def test_the_format_is_public() -> None:
    """Prefix, base64url JSON with these names, HMAC-SHA256 over both: another language can make one."""
    payload, signature = parts(mint_token(NEW, CLAIMS))
    assert payload == {
        "kid": "k2",
        "ten": "acme",
        "aud": "nightschool.outcomes",
        "tid": "0af7651916cd43dd8448eb211c80319c",
        "sid": "b7ad6b7169203331",
        "cid": "c-17",
        "names": ["thumb", "csat"],
        "src": "pseudonym",
        "iat": NOW_S,
        "exp": NOW_S + 3600,
        "jti": "token-1",
    }
    assert len(signature) == 43
    assert VERIFIER.verify(signed(payload), now_s=NOW_S).trace_id == CLAIMS.trace_id


def test_a_token_ends() -> None:
    """It is valid until it expires and not before it was issued, but clocks may differ by five minutes."""
    token = mint_token(NEW, CLAIMS)
    assert VERIFIER.verify(token, now_s=NOW_S + 3599)
    assert VERIFIER.verify(token, now_s=NOW_S - 300)
    error = refused(token, now_s=NOW_S + 3600)
    assert (error.status, str(error)) == (401, "the token has expired; ask for a new one")
    assert "issued in the future" in str(refused(token, now_s=NOW_S - 301))


def test_a_forgery_is_refused_without_a_hint() -> None:
    """Another key, another tenant's key, a changed claim, an unknown tenant or kid: the answer is always the same."""
    payload, signature = parts(mint_token(NEW, CLAIMS))
    mine = encoded(json.dumps({**payload, "names": ["resolved"]}).encode())
    forgeries = [
        mint_token(OutcomeKey("k2", b"9" * 32), CLAIMS),
        mint_token(OutcomeKey("k9", b"2" * 32), CLAIMS),
        mint_token(NEW, replace(CLAIMS, tenant="globex")),
        mint_token(NEW, replace(CLAIMS, tenant="nobody")),
        f"nsf1.{mine}.{signature}",
        signed({**payload, "ten": ["acme"]}),
        signed({**payload, "kid": None}),
        signed({}),
    ]
    said = {(error.status, str(error)) for error in map(refused, forgeries)}
    assert said == {
        (401, "the token's signature is not valid: it was altered, or minted with a key this collector does not have")
    }


@pytest.mark.parametrize(
    "token",
    [
        None,
        3,
        "",
        "nsf1",
        "nsf1..",
        "a.b.c.d",
        "nsf1.é.é",
        "nsf1.!!!.AA",
        signed(b"[" * 3000),
        signed([]),
        signed(b"not json"),
        signed({"ten": "acme"}, prefix="nsf2"),
        mint_token(NEW, CLAIMS) + "=",
        mint_token(NEW, CLAIMS)[:-1] + "\n",
        "x" * 5000,
    ],
)
def test_what_is_no_token_is_said_to_be_malformed(token: Any) -> None:
    """Cut, quoted or made up: a 401 that says what a token looks like, and no other error."""
    error = refused(token)
    assert (error.status, "malformed" in str(error)) == (401, True)


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "other"},
        {"names": []},
        {"names": "thumb"},
        {"names": ["n"] * 33},
        {"names": [3]},
        {"tid": "0" * 32},
        {"tid": None},
        {"sid": "xyz"},
        {"exp": NOW_S},
        {"exp": 1e12},
        {"iat": True},
        {"jti": ""},
        {"src": 3},
        {"cid": ""},
        {"extra": 1},
    ],
)
def test_a_signed_token_must_still_make_sense(change: dict[str, Any]) -> None:
    """A good signature over a claim of the wrong kind is a 401 that names the claim."""
    payload, _ = parts(mint_token(NEW, CLAIMS))
    error = refused(signed({**payload, **change}))
    assert (error.status, next(iter(change)) in str(error)) == (401, True)


def test_a_revoked_key_or_token_counts_no_more() -> None:
    """By the id of the key or of the token, for one tenant only."""
    for what in ("kid:k2", "jti:token-1"):
        error = refused(mint_token(NEW, CLAIMS), verifier=TokenVerifier({"acme": [NEW, OLD]}, {"acme": [what]}))
        assert (error.status, str(error)) == (403, "the token was revoked; ask for a new one")
    others = TokenVerifier({"acme": [NEW, OLD]}, {"acme": ["kid:k1", "jti:token-2"], "globex": ["kid:k2"]})
    assert others.verify(mint_token(NEW, CLAIMS), now_s=NOW_S)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_byte_of_a_token_can_be_changed(data: st.DataObject) -> None:
    """A token has only one text: it is refused after any character was changed."""
    token = mint_token(NEW, CLAIMS)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(
        st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=").filter(lambda c: c != token[at])
    )
    assert refused(token[:at] + other + token[at + 1 :]).status == 401


def test_what_no_collector_would_take_is_not_minted() -> None:
    """A claim that cannot be right is refused when the token is made."""
    for change in ({"names": ()}, {"trace_id": "x"}, {"expires_at": NOW_S}, {"rater": "r" * 257}):
        with pytest.raises(RecordError):
            mint_token(NEW, replace(CLAIMS, **change))  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="at most 4096 are allowed"):
        mint_token(NEW, replace(CLAIMS, names=tuple(f"{n}" * 100 for n in range(10, 42))))
    assert len({new_token_id() for _ in range(100)}) == 100


def test_a_secret_is_long_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a file or the environment; a short or missing one is an error that does not show it."""
    path = tmp_path / "k1"
    path.write_text("s" * 40 + "\n")
    key = load_key(f"k1=file:{path}")
    assert (key.kid, key.secret) == ("k1", b"s" * 40)
    assert "sss" not in repr(key)
    monkeypatch.setenv("MY_KEY", "e" * 32)
    assert load_key("k2=env:MY_KEY") == OutcomeKey("k2", b"e" * 32)
    monkeypatch.setenv("MY_KEY", "hunter2")
    with pytest.raises(ConfigError, match="the secret of outcome key 'k2' has 7 bytes; it needs at least 32") as caught:
        load_key("k2=env:MY_KEY")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="environment variable OTHER, which is not set"):
        load_key("k2=env:OTHER")
    with pytest.raises(ConfigError, match="which cannot be read: No such file"):
        load_key(f"k1=file:{tmp_path / 'none'}")
