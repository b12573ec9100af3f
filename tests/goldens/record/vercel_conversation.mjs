// The two conversations of conversation.py with the Vercel AI SDK, which runs the tool itself. What differs between its versions is
// how telemetry is switched on: `register` is called once the exporter is there, `options` go into every call.
import { createOpenAI } from "@ai-sdk/openai";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { trace } from "@opentelemetry/api";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

export async function talk({ register = () => {}, options = {} }) {
  const url = process.env.GOLDEN_URL;
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ "service.name": "help-desk" }),
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url: `${url}/v1/traces` }))],
  });
  provider.register();
  register();

  const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" }).chat("help-desk-1");
  const shared = {
    model,
    system: "You are the help desk of a bank.",
    temperature: 0.2,
    topP: 0.9,
    maxOutputTokens: 128,
    seed: 7,
    maxRetries: 0,
    ...options,
  };
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
      ...shared,
      prompt: "My card ending 4242 is blocked. What now?",
      tools: { lookup_card: lookupCard },
      stopWhen: stepCountIs(3),
    }),
  );
  await within("hours", () => streamText({ ...shared, prompt: "Are you open on Sunday?" }).consumeStream());
  await provider.shutdown();
}
