import sys

from text_generation import Client

url, *_ = sys.argv[1:]
client = Client(url)
whole = client.generate("The sea", max_new_tokens=9, do_sample=True, seed=1, decoder_input_details=True)
stream = client.generate_stream("The sea", max_new_tokens=9, do_sample=True, seed=1)
assert "".join(event.token.text for event in stream) == whole.generated_text
assert whole.details.prefill
