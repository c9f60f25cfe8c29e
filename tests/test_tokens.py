"""Session tokens: what is signed is what is read, and nothing else is."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from pgrecall import SettingsError, TokenError, tokens

SECRET = "s" * 32
OTHER = "o" * 32
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGRECALL_TOKEN_SECRET", SECRET)


def test_a_token_says_whom_it_was_made_for() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    said = tokens.read_token(tokens.session_token("käse/1", expires_in=HOUR, run_id=7))
    assert (said.session_id, said.run_id, said.scopes) == ("käse/1", 7, ("recalls",))
    assert before + HOUR <= said.expires_at <= before + HOUR + timedelta(seconds=5)
    assert tokens.read_token(tokens.session_token("s1", expires_in=HOUR)).run_id is None


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_token_is_refused(part: int) -> None:
    parts = tokens.session_token("s1", expires_in=HOUR).split(".")
    text = parts[part]
    parts[part] = text[:5] + ("A" if text[5] != "A" else "B") + text[6:]
    with pytest.raises(TokenError):
        tokens.read_token(".".join(parts))


def test_a_token_without_a_signature_is_refused() -> None:
    said = {"sub": "s1", "aud": "pgrecall", "exp": 4102444800, "scopes": ["recalls"]}
    unsigned = jwt.encode(said, "", algorithm="none")
    with pytest.raises(TokenError):
        tokens.read_token(unsigned)
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    with pytest.raises(TokenError):
        tokens.read_token(".".join([head, *tokens.session_token("s1", expires_in=HOUR).split(".")[1:]]))


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 0},
        {"exp": None},
        {"aud": "callbacks"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"run_id": "7"},
        {"run_id": True},
        {"scopes": "recalls"},
        {"nbf": 4102444800},
    ],
)
def test_a_token_with_our_signature_that_we_did_not_make_is_refused(change: dict[str, object]) -> None:
    said = {"sub": "s1", "aud": "pgrecall", "exp": 4102444800, "scopes": ["recalls"]} | change
    signed = jwt.encode({name: claim for name, claim in said.items() if claim is not None}, SECRET, algorithm="HS256")
    with pytest.raises(TokenError):
        tokens.read_token(signed)


def test_a_token_signed_in_another_way_is_refused() -> None:
    said = {"sub": "s1", "aud": "pgrecall", "exp": 4102444800, "scopes": ["recalls"]}
    with pytest.raises(TokenError):
        tokens.read_token(jwt.encode(said, SECRET * 2, algorithm="HS512"), secret=SECRET * 2)


@pytest.mark.parametrize("text", ["", ".", "a.b.c", "x" * 100_000, "\x00", "é.é.é", "Bearer x"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenError):
        tokens.read_token(text)


def test_an_expired_token_says_so() -> None:
    token = tokens.session_token("s1", expires_in=timedelta(microseconds=1))
    with pytest.raises(TokenError, match="has expired"):
        tokens.read_token(token)


def test_the_first_of_several_secrets_signs_and_all_verify() -> None:
    old = tokens.session_token("s1", expires_in=HOUR, secret=SECRET)
    new = tokens.session_token("s1", expires_in=HOUR, secret=f"{OTHER}, {SECRET}")
    assert tokens.read_token(old, secret=f"{OTHER},{SECRET}") == tokens.read_token(old, secret=SECRET)
    assert tokens.read_token(new, secret=OTHER).session_id == "s1"
    for token, secret in ((old, OTHER), (new, SECRET)):
        with pytest.raises(TokenError, match="no secret of ours"):
            tokens.read_token(token, secret=secret)


@pytest.mark.parametrize("secret", ["", " , ", "short", "s" * 31, f"{SECRET},short"])
def test_without_a_good_secret_nothing_is_signed_and_nothing_read(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.session_token("s1", expires_in=HOUR)
    monkeypatch.setenv("PGRECALL_TOKEN_SECRET", secret)
    for act in (lambda: tokens.session_token("s1", expires_in=HOUR), lambda: tokens.read_token(token)):
        with pytest.raises(SettingsError, match="PGRECALL_TOKEN_SECRET") as caught:
            act()
        assert "openssl rand -hex 32" in caught.value.hint
        assert not secret.strip(" ,") or secret not in str(caught.value)


def test_a_token_that_makes_no_sense_is_not_made() -> None:
    for expires_in in (timedelta(0), -HOUR, timedelta.max):
        with pytest.raises(SettingsError, match="expires_in"):
            tokens.session_token("s1", expires_in=expires_in)
    for session_id in ("", "x" * 256):
        with pytest.raises(SettingsError, match="1 to 255"):
            tokens.session_token(session_id, expires_in=HOUR)
