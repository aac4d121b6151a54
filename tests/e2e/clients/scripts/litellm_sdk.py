import sys

import litellm

url, model, *_ = sys.argv[1:]
known = {"api_base": f"{url}/v1", "api_key": "unused", "max_tokens": 9}
messages = [{"role": "user", "content": "Where is the sea?"}]
assert litellm.completion(model=f"openai/{model}", messages=messages, **known).choices
assert list(litellm.completion(model=f"openai/{model}", messages=messages, stream=True, **known))
assert litellm.text_completion(model=f"text-completion-openai/{model}", prompt="The sea", **known).choices[0].text
