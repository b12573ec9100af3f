// Vercel AI SDK: `ai` with `experimental_telemetry`, the same two conversations as conversation.py. The SDK runs the tool itself.
import { createOpenAI } from "@ai-sdk/openai";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { trace } from "@opentelemetry/api";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const url = process.env.GOLDEN_URL;
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ "service.name": "help-desk" }),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url: `${url}/v1/traces` }))],
});
provider.register();

const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" }).chat("help-desk-1");
const system = "You are the help desk of a bank.";
const sampling = { temperature: 0.2, topP: 0.9, maxOutputTokens: 128, seed: 7, maxRetries: 0 };
const telemetry = { isEnabled: true, metadata: { sessionId: "thread-42", userId: "user-7" } };
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
    experimental_telemetry: telemetry,
    ...sampling,
  }),
);
await within("hours", () =>
  streamText({ model, system, prompt: "Are you open on Sunday?", experimental_telemetry: telemetry, ...sampling }).consumeStream(),
);
await provider.shutdown();
