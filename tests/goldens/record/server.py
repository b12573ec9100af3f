"""What an instrumented app talks to while a golden is recorded: a small OpenAI server and an OTLP sink, in one process.

The server speaks `POST /v1/chat/completions` as OpenAI and vLLM do, streamed or not, and answers each question of
`conversation.py` (and `vercel.mjs`) with the same bytes every time. The sink keeps the body of every OTLP export as it came,
decompressed: nothing is decoded here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "help-desk-1-2026-01"
TOOL_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "lookup_card", "arguments": '{"last_digits": "4242"}'},
}
# Last message of the request -> id, message, finish reason, prompt and completion tokens.
ANSWERS: dict[str, tuple[str, dict[str, Any], str, int, int]] = {
    "My card ending 4242 is blocked. What now?": (
        "chatcmpl-1",
        {"content": None, "tool_calls": [TOOL_CALL]},
        "tool_calls",
        42,
        17,
    ),
    '{"status": "blocked", "reason": "three wrong PINs"}': (
        "chatcmpl-2",
        {"content": "Three wrong PINs blocked it. Unblock it in the app."},
        "stop",
        80,
        15,
    ),
    "Are you open on Sunday?": ("chatcmpl-3", {"content": "Yes, from nine to five."}, "stop", 30, 7),
}


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, whole."""
    response_id, message, reason, num_prompt, num_completion = ANSWERS[_last_text(body)]
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason, "logprobs": None}
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_completion, "total_tokens": num_prompt + num_completion}
    head = {"id": response_id, "object": "chat.completion", "created": 1_790_000_000, "model": MODEL}
    return {**head, "choices": [choice], "usage": usage}


def chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer to a request, word by word."""
    whole = completion(body)
    head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    (choice,) = whole["choices"]
    words = choice["message"]["content"].split(" ")
    pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    for delta in ({"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)):
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": whole["usage"]}


def _last_text(body: dict[str, Any]) -> str:
    """The text of the last message, which some clients send as a list of parts."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Server(ThreadingHTTPServer):
    """Model and sink behind one port."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.traces: list[bytes] = []
        self.logs: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path.endswith("/chat/completions"):
            self._answer_chat(json.loads(body))
        elif path.endswith("/traces"):
            self.server.traces.append(body)
            self._reply(b"", "application/x-protobuf")
        elif path.endswith("/logs"):
            self.server.logs.append(body)
            self._reply(b"", "application/x-protobuf")
        else:
            self._reply(b"{}", "application/json")

    def do_GET(self) -> None:
        self._reply(b"{}", "application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer_chat(self, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            self._reply(json.dumps(completion(body)).encode(), "application/json")
            return
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks(body)]
        self._reply("".join([*events, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _reply(self, content: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return None
