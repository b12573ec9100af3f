// Vercel AI SDK from version 7: `@ai-sdk/otel` speaks the GenAI conventions. The same two conversations as conversation.py.
import { createOpenAI } from "@ai-sdk/openai";
import { OpenTelemetry } from "@ai-sdk/otel";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { trace } from "@opentelemetry/api";
import { generateText, jsonSchema, registerTelemetry, stepCountIs, streamText, tool } from "ai";

const url = process.env.GOLDEN_URL;
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ "service.name": "help-desk" }),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url: `${url}/v1/traces` }))],
});
provider.register();
registerTelemetry(new OpenTelemetry());

const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" }).chat("help-desk-1");
const system = "You are the help desk of a bank.";
const sampling = { temperature: 0.2, topP: 0.9, maxOutputTokens: 128, seed: 7, maxRetries: 0 };
const lookupCard = tool({
  description: "Why a card is blocked.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { last_digits: { type: "string" } },
    required: ["last_digits"],
  }),
  execute: async () => '{"status": "blocked", "reason": "three wrong PINs"}',
});

const app = trace.getTracer("help-desk");
const within = (name, run) =>
  app.startActiveSpan(name, async (span) => {
    await run();
    span.end();
  });

await within("card", () =>
  generateText({
    model,
    system,
    prompt: "My card ending 4242 is blocked. What now?",
    tools: { lookup_card: lookupCard },
    stopWhen: stepCountIs(3),
    
    ...sampling,
  }),
);
await within("hours", () =>
  streamText({ model, system, prompt: "Are you open on Sunday?",  ...sampling }).consumeStream(),
);
await provider.shutdown();
