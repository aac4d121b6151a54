"""The embedded model without torch is the one that the build reads."""

import numpy as np

from compressor import huggingface
from compressor.runtime import reference
from compressor.runtime.evaluate import hidden_states


def test_it_is_the_checkpoint_bit_for_bit() -> None:
    checkpoint, ids = huggingface.load(reference.NAME), np.arange(20)
    model = reference.dense()
    assert checkpoint.source.sha256 == reference.sha256()
    assert model.config == checkpoint.model.config
    assert np.array_equal(hidden_states(model, ids), hidden_states(checkpoint.model.decoder(), ids))
