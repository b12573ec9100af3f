"""The pages behind a feedback link in an e-mail. Opening the link writes nothing, because mail scanners open links too;
the button on the page writes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.responses import HTMLResponse

FIELDS = ("token", "name", "value", "about", "op", "event_id")
_HEADERS = {
    "cache-control": "no-store",
    # The address holds the token. Not "no-referrer": the form's own Origin would then be "null".
    "referrer-policy": "same-origin",
    "x-robots-tag": "noindex, nofollow",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:1.1rem/1.5 system-ui;max-width:30rem;margin:15vh auto;padding:0 1rem}}button{{font:inherit;padding:.5rem 1.5rem}}</style>
</head><body><h1>{title}</h1>{body}</body></html>
"""


def confirm_page(fields: Mapping[str, str]) -> HTMLResponse:
    """A page with a button that sends `fields`."""
    # A new id for every view: two clicks of the same button are one outcome, a second visit is a correction.
    sent = {**fields, "event_id": secrets.token_urlsafe(12)}
    inputs = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in sent.items() if name in FIELDS
    )
    shown = f"<p><b>{escape(fields.get('name', ''))}</b>: {escape(fields.get('value', ''))}</p>"
    return page("Send your feedback?", f'{shown}<form method="post">{inputs}<button>Send</button></form>', status=200)


def page(title: str, body: str, *, status: int) -> HTMLResponse:
    """A small page; `body` is HTML."""
    return HTMLResponse(_PAGE.format(title=escape(title), body=body), status_code=status, headers=_HEADERS)


def parse_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object for the fields of a form or a link; a value that is not `true`, `false` or a number is text."""
    body: dict[str, Any] = {name: value for name, value in fields.items() if name in FIELDS}
    if "value" in body:
        try:
            value = json.loads(body["value"])
        except (ValueError, RecursionError):
            value = None
        body["value"] = value if isinstance(value, (bool, int, float)) else body["value"]
    return body
