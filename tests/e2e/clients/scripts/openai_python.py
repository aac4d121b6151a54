import sys

from openai import OpenAI

url, model, *_ = sys.argv[1:]
ai = OpenAI(base_url=f"{url}/v1", api_key="unused")
assert [card.id for card in ai.models.list()] == [model]
whole = ai.completions.create(model=model, prompt="The sea", max_tokens=9, seed=1)
stream = ai.completions.create(model=model, prompt="The sea", max_tokens=9, seed=1, stream=True)
assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
messages = [{"role": "user", "content": "Where is the sea?"}]
chat = ai.chat.completions.create(model=model, messages=messages, max_completion_tokens=9, logprobs=True, top_logprobs=2)
assert chat.choices[0].logprobs.content
with ai.chat.completions.stream(model=model, messages=messages, max_tokens=9) as events:
    assert events.get_final_completion().choices[0].message.role == "assistant"
assert len(ai.embeddings.create(model=model, input=["The sea"]).data[0].embedding) > 1
