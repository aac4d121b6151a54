"""What experiments share."""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from compressor import huggingface
from compressor.artifact.tokenizer import read_tokenizer
from compressor.experiments.corpus import Corpus, read_corpus
from compressor.huggingface import Checkpoint
from compressor.pretraining import text as pretraining
from compressor.pretraining.config import Config
from compressor.progress import Progress, silent
from compressor.recipes.context import HEALING_TOKENS, Context
from compressor.recipes.executor import IN_PROCESS, Executor

CALIBRATION_ROWS = 128  # of the books
TRAIN, VALID = "train.txt.xz", "valid.txt.xz"


class Workbench:
    """What experiments share; everything is made when it is first asked for.

    Attributes:
        books: folder with train.txt.xz and valid.txt.xz, or None.
        executor: where candidates are measured.
        progress: progress callback.
        checkpoint: what is compressed; by default the embedded model.
        anew: whether healing and training that were interrupted begin anew.
    """

    def __init__(
        self,
        books: Path | None = None,
        executor: Executor = IN_PROCESS,
        progress: Progress = silent,
        *,
        checkpoint: Checkpoint | None = None,
        anew: bool = False,
    ) -> None:
        self.books = books
        self.executor = executor
        self.progress = progress
        self.anew = anew
        self._pretraining: pretraining.Corpus | None = None
        self.checkpoint = checkpoint or huggingface.load(huggingface.EMBEDDED)
        self.dense = self.checkpoint.dense
        self.tokenizer = read_tokenizer(self.checkpoint.tokenizer_json)

    @cached_property
    def corpus(self) -> Corpus:
        """The books."""
        return read_corpus(self.folder / TRAIN, self.tokenizer, self.dense.config.eos_token_id)

    @cached_property
    def on_books(self) -> Context:
        """What experiments share that are calibrated on books."""
        given = self.corpus.calibration(CALIBRATION_ROWS, self.dense.config.n_positions)
        return Context(checkpoint=self.checkpoint, given=given, executor=self.executor, progress=self.progress)

    @cached_property
    def on_samples(self) -> Context:
        """What experiments share that are calibrated on text that the model writes."""
        return Context(checkpoint=self.checkpoint, executor=self.executor, progress=self.progress)

    @cached_property
    def sampled_to_heal(self) -> Tensor:
        """Text to heal on that the model writes."""
        return self.on_samples.healing_text(HEALING_TOKENS, 0)

    @property
    def folder(self) -> Path:
        """The folder with the books; raises ValueError if it was not given."""
        if self.books is None:
            raise ValueError(f"books: give the folder with {TRAIN} and {VALID} (--books)")
        return self.books

    def pretraining_corpus(self, config: Config) -> pretraining.Corpus:
        """Return the books in tokens of the config's tokenizer, which all experiments on pre-training share."""
        if self._pretraining is None:
            self._pretraining = pretraining.read_corpus(config, [self.folder / TRAIN], self.folder / VALID)
        return self._pretraining

    def context(self, *, books: bool) -> Context:
        """Return what experiments share that are calibrated on books, or on text that the model writes."""
        return self.on_books if books else self.on_samples
