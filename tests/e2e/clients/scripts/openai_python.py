import sys

from openai import OpenAI

url, model, *_ = sys.argv[1:]
ai = OpenAI(base_url=f"{url}/v1", api_key="unused")
assert [card.id for card in ai.models.list()] == [model]
whole = ai.completions.create(model=model, prompt="The sea", max_tokens=9, seed=1)
stream = ai.completions.create(model=model, prompt="The sea", max_tokens=9, seed=1, stream=True)
assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
messages = [{"role": "user", "content": "Where is the sea?"}]
asked = {"model": model, "messages": messages, "max_completion_tokens": 9}
chat = ai.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
assert chat.choices[0].logprobs.content
stream = ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
assert [chunk.usage for chunk in stream][-1].completion_tokens == 9
assert len(ai.embeddings.create(model=model, input=["The sea"]).data[0].embedding) > 1
