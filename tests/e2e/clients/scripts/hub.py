import sys

from huggingface_hub import InferenceClient

url, model, *_ = sys.argv[1:]
texts, chats = InferenceClient(url), InferenceClient(f"{url}/v1")
whole = texts.text_generation("The sea", max_new_tokens=9, seed=1, details=True)
stream = texts.text_generation("The sea", max_new_tokens=9, seed=1, stream=True)
assert "".join(stream) == whole.generated_text
asked = {"messages": [{"role": "user", "content": "Where is the sea?"}], "model": model, "max_tokens": 9}
assert chats.chat_completion(**asked).choices
assert list(chats.chat_completion(**asked, stream=True))
