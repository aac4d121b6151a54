"""Tasks for lm-eval (EleutherAI's lm-evaluation-harness), made of any text, without a hub.

They ask what `evaluate` and `tasks` ask, so that the figures can be checked by independent code.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from compressor.evaluation.questions import check_passages, passages
from compressor.runtime.evaluate import read_utf8
from compressor.storage import durable

TEXT, LAST_WORD = "ttgpt_text", "ttgpt_last_word"


def write(text: Path, folder: Path) -> str:
    """Write two tasks about a UTF-8 text file to a new folder; return the command that runs them.

    `ttgpt_text` predicts the whole text in windows of the model's context that do not overlap. `ttgpt_last_word` is
    scored as LAMBADA is. A YAML file holds the absolute path of its JSONL file.

    Raises:
        ValueError: if `folder` exists, or the text cannot be read or has no passage.
    """
    refuse_existing(folder)
    whole = read_utf8(text)
    asked = [{"context": beginning, "target": last} for beginning, last in passages(whole)]
    check_passages(len(asked))
    per_byte = [_metric("byte_perplexity", "weighted_perplexity"), _metric("bits_per_byte", "bits_per_byte")]
    per_byte.append(_metric("word_perplexity", "weighted_perplexity"))
    per_passage = [_metric("acc", "mean", more_is_better=True), _metric("perplexity", "perplexity")]
    with durable.replacing(folder) as new:
        new.mkdir()
        place = folder.resolve()
        _write_task(new, place, TEXT, "loglikelihood_rolling", [{"context": "", "target": whole}], per_byte)
        _write_task(new, place, LAST_WORD, "loglikelihood", asked, per_passage)
    return (
        f"lm_eval --include_path {shlex.quote(str(folder))} --tasks {TEXT},{LAST_WORD} "
        "--model hf --model_args pretrained=DIR,dtype=float32 --device cpu"
    )


def refuse_existing(folder: Path) -> None:
    """Raise ValueError if a folder to be made is there already."""
    if folder.exists():
        raise ValueError(f"out: {folder} exists already; choose another folder")


def _metric(name: str, aggregation: str, *, more_is_better: bool = False) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": more_is_better}


def _write_task(
    new: Path, place: Path, name: str, kind: str, documents: list[dict[str, str]], metrics: list[dict[str, Any]]
) -> None:
    """Write a task to the folder `new`, which is going to be at `place`."""
    data = new / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / data.name)}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{target}}",
        "metric_list": metrics,
    }
    (new / f"{name}.yaml").write_text(json.dumps(task, indent=2) + "\n")  # JSON is YAML
