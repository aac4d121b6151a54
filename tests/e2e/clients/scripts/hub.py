import sys

from huggingface_hub import InferenceClient

url, model, *_ = sys.argv[1:]
hub = InferenceClient(url)
whole = hub.text_generation("The sea", max_new_tokens=9, seed=1, details=True)
assert "".join(hub.text_generation("The sea", max_new_tokens=9, seed=1, stream=True)) == whole.generated_text
messages = [{"role": "user", "content": "Where is the sea?"}]
assert InferenceClient(f"{url}/v1").chat_completion(messages, model=model, max_tokens=9).choices
assert list(InferenceClient(f"{url}/v1").chat_completion(messages, model=model, max_tokens=9, stream=True))
