"""What we use of the pinned vLLM, by name and signature: a new version that changes any of it fails here first."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest
import vllm
from fastapi import FastAPI

pytestmark = pytest.mark.vllm


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_this_was_read_in() -> None:
    """Before a new minor version is used, every hook must be read again."""
    assert vllm.__version__.startswith("0.32.")


def test_the_engine_client() -> None:
    """The LoRA methods exist on AsyncLLM alone; the abstract client declares only add_lora."""
    from vllm.v1.engine.async_llm import AsyncLLM

    assert parameters(AsyncLLM.add_lora) == ["self", "lora_request"]
    assert parameters(AsyncLLM.remove_lora) == ["self", "lora_id"]
    assert parameters(AsyncLLM.list_loras) == ["self"]
    assert parameters(AsyncLLM.collective_rpc)[:2] == ["self", "method"]
    assert parameters(AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert "lora_request" in parameters(AsyncLLM.generate)


def test_how_the_server_is_started_and_told_to_stop() -> None:
    """Options of uvicorn are passed on; at the end the engine is stopped in a thread, before the HTTP server."""
    from vllm.entrypoints.launchers import launcher
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.v1.engine.async_llm import AsyncLLM

    assert parameters(entry.run_server) == ["args", "uvicorn_kwargs"]
    assert parameters(AsyncLLM.shutdown) == ["self", "timeout"]
    source = inspect.getsource(launcher.serve_http)
    assert source.index("partial(engine_client.shutdown, timeout=timeout)") < source.index("server.should_exit = True")
    assert "uvicorn.Config(app, **uvicorn_kwargs)" in source


def test_a_lora_request() -> None:
    """Fields, and the prefix-cache key that makes immutable names and paths necessary."""
    from vllm.lora.request import LoRARequest
    from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys

    request = LoRARequest(lora_name="t-a.1", lora_int_id=1000, lora_path="/x")
    assert (request.lora_name, request.lora_int_id, request.lora_path, request.load_inplace) == ("t-a.1", 1000, "/x", False)
    keys = _gen_lora_extra_hash_keys(type("R", (), {"lora_request": request})())
    assert "t-a.1" in str(keys)
    assert "/x" in str(keys)


def test_our_routes_replace_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM finds the plugin by its entry point; its routes replace vLLM's of the same path and method."""
    from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
    from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins

    from nightschool_serving.routes import chat, show_releases

    monkeypatch.setenv("VLLM_PLUGINS", "nightschool")
    app = FastAPI()
    chat_routes.attach_router(app)
    attach_endpoint_plugins(app, ("generate",))
    assert [plugin.name for plugin in app.state.endpoint_plugins] == ["nightschool"]
    found = {(route.path, method): route.endpoint for route in app.routes for method in getattr(route, "methods", ())}
    assert found["/v1/chat/completions", "POST"] is chat
    assert found["/nightschool/v1/releases", "GET"] is show_releases


def test_the_handlers_that_our_routes_hand_on_to() -> None:
    """vLLM's own route functions take the body, then the raw request, and find their handler in app.state."""
    from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
    from vllm.entrypoints.openai.completion.api_router import create_completion

    for function, state in (
        (create_chat_completion, "openai_serving_chat"),
        (create_completion, "openai_serving_completion"),
    ):
        assert parameters(function) == ["request", "raw_request"]
        module = inspect.getsource(inspect.getmodule(function))
        assert f"app.state.{state}" in module


@pytest.mark.parametrize("name", ["ChatCompletionRequest", "CompletionRequest"])
def test_the_request_fields_we_overwrite(name: str) -> None:
    """They exist, so that assigning them has an effect; no new field lets a client set an identity or a priority."""
    from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
    from vllm.entrypoints.openai.completion import protocol as completion_protocol

    from nightschool_serving.routes import FORBIDDEN_FIELDS, REFUSED_FIELDS

    kind = getattr(chat_protocol if name.startswith("Chat") else completion_protocol, name)
    ours = {"model", "cache_salt", "priority", "request_id", *FORBIDDEN_FIELDS}
    assert ours <= set(kind.model_fields)
    both = {*chat_protocol.ChatCompletionRequest.model_fields, *completion_protocol.CompletionRequest.model_fields}
    assert set(REFUSED_FIELDS) <= both
    suspicious = {field for field in kind.model_fields if field.endswith(("_id", "_salt", "priority", "_transfer_params"))}
    assert suspicious <= ours


def test_what_a_span_reports_of_a_request() -> None:
    """What the client set, by the names of request bodies; not the content, and nothing that vLLM does not know."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    from nightschool_serving.telemetry.spans import sent_fields

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    sent = {"temperature": 0.0, "stop": ["x"], "min_p": 0.1, "response_format": form}
    body = {**sent, "messages": [], "user": "u", "reasoning_effort": "low", "nonsense": 1, "seed": None}
    found = sent_fields(ChatCompletionRequest.model_validate(body))
    assert found.pop("response_format")["json_schema"]["schema"] == {"type": "object"}
    assert found == {"temperature": 0.0, "stop": ["x"], "min_p": 0.1, "reasoning_effort": None}


@pytest.mark.parametrize("name", ["ChatCompletionRequest", "CompletionRequest"])
def test_the_parameters_that_are_only_known_by_name(name: str) -> None:
    """A night leaves requests with them out. A new one in vLLM is put here, or among those that are understood."""
    from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
    from vllm.entrypoints.openai.completion import protocol as completion_protocol

    from nightschool import semconv
    from nightschool_serving.telemetry.spans import NOT_REPORTED, WITH_VALUE

    kind = getattr(chat_protocol if name.startswith("Chat") else completion_protocol, name)
    left = set(kind.model_fields) - WITH_VALUE - NOT_REPORTED - semconv.PROMPT_PARAMETERS
    assert left == ONLY_BY_NAME[name]


_EITHER = {
    "echo",
    "mm_payload",
    "repetition_detection",
    "spaces_between_special_tokens",
    "structured_outputs",
    "thinking_token_budget",
    "watermarking",
}
ONLY_BY_NAME = {
    "ChatCompletionRequest": _EITHER | {"include_reasoning", "media_io_kwargs", "mm_processor_kwargs"},
    "CompletionRequest": _EITHER | {"prompt_embeds", "suffix"},
}


def test_a_chat_request_without_a_limit_gets_the_servers() -> None:
    """[serving] default_max_tokens; a request's own limit stays, and vLLM takes the smaller of it and what is left."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

    from nightschool_serving.routes import LIMIT_FIELDS, limit_answer

    def limits(default: int, **sent: int) -> dict[str, int]:
        request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **sent)
        limit_answer(request, default)
        return dict(request.model_dump(include=LIMIT_FIELDS, exclude_none=True))

    assert limits(0) == {}
    assert limits(100) == {"max_completion_tokens": 100}
    assert limits(100, max_tokens=7) == {"max_tokens": 7}
    assert limits(100, max_completion_tokens=200) == {"max_completion_tokens": 200}
    assert get_max_tokens(50, 100, 20, {}) == 30


def test_the_headers_that_beat_the_body() -> None:
    """The four that the guard removes are all that vLLM's handlers read to steer the engine."""
    from vllm.entrypoints.generate.base import serving
    from vllm.entrypoints.serve.engine import serving as engine_serving

    read = set()
    for module in (serving, engine_serving):
        source = inspect.getsource(module)
        read |= {line.split('headers.get("')[1].split('"')[0] for line in source.splitlines() if 'headers.get("' in line}
    read |= {serving.SESSION_ID_HEADER, serving.PRIORITY_HEADER}
    assert {name.lower() for name in read} == {"x-request-id", "x-vllm-priority", "x-session-id", "x-data-parallel-rank"}


def test_the_recorder_sees_deltas_or_one_final_output() -> None:
    """Never cumulative outputs, which it would add up twice; and logprobs=0 means the sampled token alone."""
    from vllm import SamplingParams
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}])
    assert request.to_sampling_params(5, {}).output_kind.name == "FINAL_ONLY"
    request.stream = True
    assert request.to_sampling_params(5, {}).output_kind.name == "DELTA"
    assert SamplingParams(logprobs=0).num_logprobs == 0
    assert SamplingParams().num_logprobs is None


def test_the_cpu_lora_operations() -> None:
    """The wrapper we extend, where the platform names it, and every method we replace."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.platforms.cpu import CpuPlatform

    wrapper = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
    assert wrapper in inspect.getsource(CpuPlatform.get_punica_wrapper) or "nightschool" in CpuPlatform.get_punica_wrapper()
    assert parameters(PunicaWrapperCPU.add_shrink) == ["self", "y", "x", "lora_a_stacked", "scale", "kwargs"]
    expand = ["self", "y", "x", "lora_b_stacked", "output_slices", "offset_start", "add_inputs", "kwargs"]
    assert parameters(PunicaWrapperCPU.add_expand) == expand
    linear = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer", "kwargs"]
    assert parameters(PunicaWrapperCPU.add_lora_linear) == linear
    logits = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "buffer", "kwargs"]
    assert parameters(PunicaWrapperCPU.add_lora_logits) == logits
    assert parameters(PunicaWrapperCPU.add_lora_embedding) == ["self", "y", "x", "lora_b_stacked", "add_inputs", "kwargs"]
    operations = {name for name in dir(PunicaWrapperCPU) if name.startswith(("add_", "apply_"))}
    replaced = {"add_shrink", "add_expand", "add_lora_linear", "add_lora_logits", "add_lora_embedding"}
    # Of classifiers, which are not served here, and of mixtures of experts, which raise on CPUs.
    assert operations - replaced <= {"apply_lora_full_linear", "add_lora_fused_moe", "add_lora_w13", "add_lora_w2"}


def test_the_options_we_start_the_server_with() -> None:
    """Every option is one of vLLM's, and processed log-probabilities are a mode it has."""
    from vllm.config.model import LogprobsMode
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from nightschool.config.settings import Config
    from nightschool.dtype import resolve_dtype
    from nightschool.machine import kv_cache_bytes, read_machine
    from nightschool_serving.launch import server_arguments
    from nightschool_serving.options import Takes, allowed_options

    parser = make_arg_parser(FlexibleArgumentParser())
    machine = read_machine()
    arguments = parser.parse_args(server_arguments(Config(), [], machine))
    assert (arguments.dtype, arguments.kv_cache_memory_bytes) == (resolve_dtype("auto"), kv_cache_bytes(machine, 0))
    assert arguments.middleware == ["nightschool_serving.front.guard.TenantGuard"]
    assert arguments.served_model_name == ["base"]
    assert "processed_logprobs" in typing.get_args(LogprobsMode)
    known = {option.lstrip("-"): action for action in parser._actions for option in action.option_strings}
    for name, takes in allowed_options().items():
        nargs = known[name].nargs
        found = Takes.NOTHING if nargs == 0 else Takes.ONE if nargs in (None, "?") else Takes.MANY
        assert found is takes, (name, nargs)
