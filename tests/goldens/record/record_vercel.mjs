// Vercel AI SDK: `ai` with `experimental_telemetry`.
import { talk } from "./vercel_conversation.mjs";

const telemetry = { isEnabled: true, metadata: { sessionId: "thread-42", userId: "user-7" } };
await talk({ options: { experimental_telemetry: telemetry } });
