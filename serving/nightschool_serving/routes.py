"""Our routes in place of vLLM's. Imports vLLM: only the endpoint plugin imports this.

Each inference route decides which adapter the client's model name means (its tenant's release, or the base model),
overwrites what a client must not choose, and calls vLLM's own route function, so that streaming, cancellation, load
tracking and errors are vLLM's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from nightschool.semconv import CAPTURE_REQUEST_HEADER
from nightschool_serving.front.guard import RequestContext
from nightschool_serving.releases.routing import ALIASES, ReleaseUnavailable, Target, UnknownModel, check_isolation
from nightschool_serving.state import Serving
from nightschool_serving.telemetry.recorder import current_recording
from nightschool_serving.telemetry.sender import Telemetry
from nightschool_serving.telemetry.spans import ServedRequest, TraceParent, sent_fields

Handler = Callable[[Any, Request], Awaitable[Response]]
# What a request body may choose in vLLM but a tenant must not: transfers of cache blocks between engines, arguments for
# engine extensions, the session that a request belongs to.
# Dropped in silence, because clients send them to every server.
FORBIDDEN_FIELDS = ("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "session_id")
# Refused, because without them the answer would be another than the one that was asked for.
REFUSED_FIELDS = {
    "logprob_token_ids": "vLLM computes the log-probabilities of the whole batch for it, other tenants' among them",
    "prompt_embeds": "nothing but text and token ids is recorded and learned from",
}
LIMIT_FIELDS = {"max_tokens", "max_completion_tokens"}

router = APIRouter()


@router.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)], response_model=None)
async def chat(request: ChatCompletionRequest, raw_request: Request) -> Response:
    return await answer(request, raw_request, create_chat_completion, operation="chat", id_prefix="chatcmpl")


@router.post("/v1/completions", dependencies=[Depends(validate_json_request)], response_model=None)
async def complete(request: CompletionRequest, raw_request: Request) -> Response:
    return await answer(request, raw_request, create_completion, operation="text_completion", id_prefix="cmpl")


@router.get("/v1/models")
async def list_models(raw_request: Request) -> JSONResponse:
    """The caller's aliases; never the names or paths of adapters."""
    serving: Serving = raw_request.app.state.nightschool_serving
    shared = {"object": "model", "created": 0, "owned_by": "nightschool", "max_model_len": serving.max_model_len}
    return JSONResponse({"object": "list", "data": [{"id": alias, **shared} for alias in ALIASES]})


@router.get("/nightschool/v1/releases")
async def show_releases(raw_request: Request) -> JSONResponse:
    """The release that answers the caller's tenant, and the last one that was refused."""
    serving: Serving = raw_request.app.state.nightschool_serving
    context: RequestContext = raw_request.state.nightschool_request
    return JSONResponse(serving.replica.describe(context.tenant))


async def answer(request: Any, raw_request: Request, handler: Handler, *, operation: str, id_prefix: str) -> Response:
    """Route one inference request and let vLLM's `handler` answer it."""
    serving: Serving = raw_request.app.state.nightschool_serving
    context: RequestContext = raw_request.state.nightschool_request
    alias = request.model
    for name, why in REFUSED_FIELDS.items():
        if getattr(request, name, None) is not None:
            return _error(400, "BadRequestError", f"{name} is not allowed here: {why}; leave it out", param=name)
    try:
        target = serving.table.resolve(context.tenant, alias)
    except UnknownModel as error:
        return _error(404, "NotFoundError", str(error), param="model")
    except ReleaseUnavailable as error:
        return _error(503, "ServiceUnavailable", str(error))
    sent = sent_fields(request)
    overwrite(request, target)
    if operation == "chat":
        limit_answer(request, serving.default_max_tokens)
    context.release = target.release
    # From here to the handler there is no await, so what is checked here is still true when the handler uses it.
    check_isolation(target, tenant=context.tenant, adapter_id=serving.engine.adapter_id(target.model))
    context.closing.enter_context(serving.table.lease(target))
    if serving.telemetry is not None:
        served = ServedRequest(
            tenant=context.tenant,
            authorization=context.authorization,
            operation=operation,
            alias=alias,
            model=target.model,
            release=target.release,
            response_id=f"{id_prefix}-{request.request_id}",
            started_ns=context.received_ns,
            parent=TraceParent.parse(raw_request.headers.get("traceparent")),
            tokenizer=serving.tokenizer,
            captures_content=raw_request.headers.get(CAPTURE_REQUEST_HEADER) != "off",
            sent=sent,
            is_beam_search=request.use_beam_search,
        )
        context.closing.callback(partial(_finish, served, context, serving.telemetry))
        current_recording.set(None if request.use_beam_search else served.recording)
    return await handler(request, raw_request)


def overwrite(request: Any, target: Target) -> None:
    """Set what only the server decides, in place of whatever the client sent."""
    request.model = target.model
    request.cache_salt = target.cache_salt
    request.priority = 0
    request.request_id = secrets.token_hex(16)
    for name in FORBIDDEN_FIELDS:
        setattr(request, name, None)


def limit_answer(request: Any, default_max_tokens: int) -> None:
    """Give a chat request without a limit of its own the server's; 0 is none. Completions have vLLM's own default."""
    if default_max_tokens and not request.model_dump(include=LIMIT_FIELDS, exclude_none=True):
        request.max_completion_tokens = default_max_tokens


def _finish(served: ServedRequest, context: RequestContext, telemetry: Telemetry) -> None:
    served.ended_ns, served.status, served.is_complete = time.time_ns(), context.status, context.is_complete
    telemetry.record(served)


def _error(status: int, kind: str, message: str, *, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status_code=status)
