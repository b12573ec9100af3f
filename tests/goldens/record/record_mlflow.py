"""mlflow-tracing: the OpenAI autolog, exported by OTLP."""

import contextlib
import os

os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = os.environ["GOLDEN_URL"] + "/v1/traces"
os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
os.environ["MLFLOW_TRACKING_URI"] = os.environ["GOLDEN_URL"]

import mlflow
from conversation import SESSION, USER, converse, lookup_card, openai_client

mlflow.openai.autolog()


@contextlib.contextmanager
def request(name: str):
    with mlflow.start_span(name) as span:
        mlflow.update_current_trace(metadata={"mlflow.trace.session": SESSION, "mlflow.trace.user": USER})
        yield span


converse(openai_client().chat.completions.create, request=request, tool=mlflow.trace(span_type="TOOL")(lookup_card))
mlflow.flush_trace_async_logging()
