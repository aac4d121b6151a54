import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const ai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const asked = { model, messages: [{ role: "user", content: "Where is the sea?" }], max_tokens: 9, seed: 1 };
const whole = await ai.chat.completions.create(asked);
let told = "";
for await (const chunk of await ai.chat.completions.create({ ...asked, stream: true }))
  told += chunk.choices[0]?.delta?.content ?? "";
if (told !== whole.choices[0].message.content) throw new Error(`${told} is not ${whole.choices[0].message.content}`);
await ai.completions.create({ model, prompt: "The sea", max_tokens: 9 });
await ai.embeddings.create({ model, input: "The sea" });
