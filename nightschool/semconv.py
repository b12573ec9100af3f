"""Attribute, event, header and topic names, declared once.

The GenAI names follow the OpenTelemetry GenAI semantic conventions (status: Development, schema 1.41). They are copied
here, because the constants in opentelemetry-semantic-conventions are deprecated as moved, and no stable package has
them.
"""

from __future__ import annotations

SCHEMA = "1"

# --- GenAI semantic conventions ---------------------------------------------------------------------------------------
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_WORKFLOW_NAME = "gen_ai.workflow.name"
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
GEN_AI_SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
GEN_AI_TOOL_DEFINITIONS = "gen_ai.tool.definitions"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id"
GEN_AI_TOOL_CALL_ARGUMENTS = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_CALL_RESULT = "gen_ai.tool.call.result"
GEN_AI_EVALUATION_RESULT = "gen_ai.evaluation.result"  # event name of an outcome
GEN_AI_EVALUATION_NAME = "gen_ai.evaluation.name"
GEN_AI_EVALUATION_SCORE_VALUE = "gen_ai.evaluation.score.value"
GEN_AI_EVALUATION_SCORE_LABEL = "gen_ai.evaluation.score.label"
GEN_AI_EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
HTTP_REQUEST_RESEND_COUNT = "http.request.resend_count"  # retries of the client inside one call; absent for none

# --- ours, on spans ---------------------------------------------------------------------------------------------------
TENANT_ID = "nightschool.tenant.id"  # resource attribute
TASK = "nightschool.task"
DOCTOR_TASK = "nightschool.doctor"  # value of TASK on what `nightschool doctor` sends; no night trains on it
SUBJECT = "nightschool.subject"  # pseudonym of the app's user, a keyed hash; never the raw id
EPISODE_ID = "nightschool.episode.id"
JOIN_KEY_PREFIX = "nightschool.join_key."  # + namespace: an id of the app's own that outcomes may name
RELEASE = "nightschool.policy.version"  # digest of the release that answered; "base" without one
SPAN_SIDE = "nightschool.side"  # "app" or "server": which of the two recorded this span
PROMPT_TOKEN_IDS = "nightschool.prompt.token_ids"
COMPLETION_TOKEN_IDS = "nightschool.completion.token_ids"
COMPLETION_LOGPROBS = "nightschool.completion.logprobs"
REQUEST_PARAMETERS = "nightschool.request.parameters"  # JSON: the parameters of a request that have no GenAI name
REDACTION_VERSION = "nightschool.redaction.version"  # only on what redaction changed: by which version of the rules
REDACTION_COUNTS = "nightschool.redaction.counts"  # and what it found, as JSON: kind -> number
TOKENIZER = "nightschool.tokenizer"  # SHA-256 of the tokenizer.json that the token ids are of
CONTENT_CAPTURE = "nightschool.content.capture"  # false where the app asked that no texts or token ids are recorded

# --- parameters of a request, by their names in the bodies of OpenAI's API and of vLLM's ---------------------------------
# They change what is sampled and have no GenAI name: recorded with their values in REQUEST_PARAMETERS.
SAMPLING_PARAMETERS = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "min_p",
        "min_tokens",
        "repetition_penalty",
        "response_format",
        "skip_special_tokens",
        "stop_token_ids",
        "use_beam_search",
    }
)
# They change the prompt, and with it what is sampled: recorded by name. Where the server recorded the token ids of the
# prompt, these hold all that they do.
PROMPT_PARAMETERS = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "reasoning_effort",
        "truncate_prompt_tokens",
        "truncation_side",
    }
)
# They do not change what is sampled: never recorded. Any other name that has no place on a span is recorded in
# REQUEST_PARAMETERS without its value, because nobody can say what it does.
NEUTRAL_PARAMETERS = frozenset(
    {
        "background",
        "cache_salt",
        "ec_transfer_params",
        "include",
        "kv_transfer_params",
        "length_penalty",  # of beams only
        "logprob_token_ids",
        "logprobs",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_logprobs",
        "request_id",
        "return_mm_kwargs",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "routed_experts_prompt_start",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "stream_interval",
        "stream_options",
        "tool_choice",
        "top_logprobs",
        "user",
        "vllm_xargs",
    }
)

# --- ours, on outcome log records -------------------------------------------------------------------------------------
OUTCOME_ID = "nightschool.outcome.id"
OUTCOME_OP = "nightschool.outcome.op"
OUTCOME_VALUE = "nightschool.outcome.value"
OUTCOME_TARGET = "nightschool.outcome.target"  # canonical JSON of the one target
OUTCOME_FINAL_TEXT = "nightschool.outcome.edit.final_text"
OUTCOME_FINAL_MESSAGES = "nightschool.outcome.edit.final_messages"  # canonical JSON
OUTCOME_DEMONSTRATION = "nightschool.outcome.demonstration"  # true: not made from the model's answer
OUTCOME_ORIGINAL_SHA256 = "nightschool.outcome.edit.original_sha256"
OUTCOME_SOURCE_KIND = "nightschool.outcome.source.kind"
OUTCOME_SOURCE_ID = "nightschool.outcome.source.id"
OUTCOME_METADATA = "nightschool.outcome.metadata"  # canonical JSON

# --- record headers and topics ----------------------------------------------------------------------------------------
HEADER_TENANT = "ns-tenant"
HEADER_SCHEMA = "ns-schema"
HEADER_RECEIVED_MS = "ns-recv-ms"
HEADER_CONTENT_TYPE = "content-type"
HEADER_DLQ_REASON = "ns-dlq-reason"  # on a dead letter: why it is one
HEADER_DLQ_TOPIC = "ns-dlq-topic"  # on a dead letter: the topic it was in, or was meant for
HEADER_DLQ_PLACE = "ns-dlq-place"  # on a dead letter that a night found: partition and offset there, as 3/1704
HEADER_DLQ_PART = "ns-dlq-part"  # on a dead letter split over several records: part 2 of 3, as 2/3
HEADER_DLQ_COUNT = "ns-dlq-count"  # on a dead letter of a collector: how many items of a request it stands for
TOPIC_SPANS = "ns.otlp_spans"
TOPIC_LOGS = "ns.otlp_logs"
TOPIC_OUTCOMES = "ns.outcomes"
TOPIC_DLQ = "ns.dlq"
TOPIC_ERASURE = "ns.erasure"
TOPIC_MANIFESTS = "ns.manifests"

# --- HTTP -------------------------------------------------------------------------------------------------------------
RELEASE_RESPONSE_HEADER = "x-nightschool-release"
CAPTURE_REQUEST_HEADER = "x-nightschool-capture"  # "off" asks the server to record neither texts nor token ids
BASE_RELEASE = "base"  # the value of that header and of RELEASE when no adapter answered
