import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url, model] = process.argv.slice(2);
const ours = createOpenAICompatible({ name: "ours", baseURL: `${url}/v1`, apiKey: "unused" });
const asked = { prompt: "Where is the sea?", maxOutputTokens: 9, seed: 1 };
const whole = await generateText({ model: ours.chatModel(model), ...asked });
let told = "";
for await (const part of streamText({ model: ours.chatModel(model), ...asked }).textStream) told += part;
if (told !== whole.text) throw new Error(`${told} is not ${whole.text}`);
await generateText({ model: ours.completionModel(model), ...asked });
