// Vercel AI SDK from version 7: `@ai-sdk/otel` speaks the GenAI conventions.
import { OpenTelemetry } from "@ai-sdk/otel";
import { registerTelemetry } from "ai";
import { talk } from "./vercel_conversation.mjs";

await talk({ register: () => registerTelemetry(new OpenTelemetry()) });
