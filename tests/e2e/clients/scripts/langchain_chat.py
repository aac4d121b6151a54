import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

url, model, *_ = sys.argv[1:]
known = {"base_url": f"{url}/v1", "api_key": "unused", "model": model}
chat = ChatOpenAI(**known, max_tokens=9, seed=1)
assert isinstance(chat.invoke("Where is the sea?").content, str)
assert list(chat.stream("Where is the sea?"))
assert OpenAI(**known, max_tokens=9).invoke("The sea")
vectors = OpenAIEmbeddings(**known, check_embedding_ctx_length=False).embed_documents(["The sea", "The old man"])
assert len(vectors) == 2
