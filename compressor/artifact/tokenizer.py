"""Reading tokenizers: a text is exactly its tokens, whatever else stands in the file.

transformers writes the `truncation` and `padding` of its last call into tokenizer.json, and training may have left
a `dropout` of merges or a post-processor that adds tokens to every text. None of them is obeyed here, so that quality,
statistics and prompts are measured on the same tokens.
"""

import json

from tokenizers import Tokenizer, processors

END_OF_TEXT = "<|endoftext|>"  # GPT-2's name of it; a checkpoint may have another


def read_tokenizer(data: bytes | str) -> Tokenizer:
    """Return the tokenizer in the contents of a tokenizer.json.

    Raises:
        ValueError: if it is none.
    """
    try:
        return plain(Tokenizer.from_str(data if isinstance(data, str) else data.decode()))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are not even that
        raise ValueError(f"is not a tokenizer: {error}") from error


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Return the same tokenizer after it was made to cut nothing, add nothing and draw nothing."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    if tokenizer.num_special_tokens_to_add(is_pair=False) or tokenizer.num_special_tokens_to_add(is_pair=True):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # GPT-2's own
    return tokenizer


def check_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose tokens are not all rows of a table; raises ValueError."""
    size = tokenizer.get_vocab_size()
    if sum(tokenizer.id_to_token(token_id) is not None for token_id in range(vocab_size)) < size:
        token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        raise ValueError(f"has {size} tokens, the last being {largest} ({token!r}), but vocab_size is {vocab_size}")


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers make the same ids of every text."""
    return one is other or bool(one.to_str() == other.to_str())


def end_of_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return what the tokenizer calls the token that ends a text.

    Raises:
        ValueError: if it has no such token.
    """
    token = tokenizer.id_to_token(token_id)
    if token is None:
        size = tokenizer.get_vocab_size()
        raise ValueError(f"eos_token_id must be one of the tokenizer's {size} tokens, not {token_id}")
    return token


def tokenizer_config(tokenizer: Tokenizer, token_id: int, context: int) -> bytes:
    """Return the tokenizer_config.json with which transformers takes the tokenizer.json beside it as it is.

    Args:
        tokenizer: the tokenizer.
        token_id: of the token that ends a text.
        context: longest text in tokens.
    """
    end = end_of_text(tokenizer, token_id)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), end)
    values = {"clean_up_tokenization_spaces": False, "model_max_length": context, **names}
    values |= {"padding_side": "left", "tokenizer_class": "PreTrainedTokenizerFast"}  # new tokens go to the right
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
