import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model, *_ = sys.argv[1:]
known = {"api_base": f"{url}/v1", "api_key": "unused", "model": model, "max_tokens": 9, "context_window": 512}
assert OpenAILike(**known).complete("The sea").text
assert list(OpenAILike(**known).stream_complete("The sea"))
chat = OpenAILike(**known, is_chat_model=True)
assert chat.chat([ChatMessage(role="user", content="Where is the sea?")]).message.role == "assistant"
assert list(chat.stream_chat([ChatMessage(role="user", content="Where is the sea?")]))
