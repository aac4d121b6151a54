"""The command line: parse, call, print."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from compressor import __version__
from compressor.cli.bench import bench
from compressor.cli.evaluate import evaluate
from compressor.cli.options import (
    AsJson,
    ExecutorName,
    Folder,
    TextFile,
    Workers,
    megabytes,
    print_object,
    say,
    sizes,
)
from compressor.display import bar
from compressor.figures import figure
from compressor.storage.run_folder import claimed, require_space, require_writable

INTERRUPTED = 130
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


class _Commands(TyperGroup):
    """All commands, of which `compress` gets its options from the methods, and so torch, when it is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name == "compress":
            from compressor.cli.compress import compress

            alone = typer.Typer(**PLAIN)
            alone.command("compress")(compress)
            command = typer.main.get_command(alone)
        return name, command, rest


app = typer.Typer(**PLAIN, cls=_Commands)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a caller's mistake, a bad artefact or a missing package is one line on stderr and exit code 2."""
    try:
        code = app(arguments or sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        code = _fail(error.format_message())
    except OSError as error:
        code = _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except ValueError as error:
        code = _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("compressor", "service"):
            raise
        code = _fail(
            f"this needs {error.name}, which `pip install 'ttgpt[compressor]'` brings, and so does the image "
            "ttgpt-compressor; without it artefacts can be served, evaluated, inspected and asked"
        )
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer returns it for Ctrl-C in a command
        print("interrupted", file=sys.stderr)
    sys.exit(code)


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _version(value: bool) -> None:
    if value:
        print(f"ttgpt {__version__}")
        raise typer.Exit


@app.callback()
def _ttgpt(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Compress GPT-2; serve it."""


@app.command("compress")
def _compress() -> None:
    """Compress a checkpoint, by a method or within a budget, and write an artefact."""


app.command()(evaluate)


@app.command()
def inspect(folder: Folder, as_json: AsJson = False) -> None:
    """Verify every checksum and tensor of an artefact, and print what is in it."""
    from compressor.artifact.folder import read
    from compressor.artifact.layouts import codecs_of, tensors_of
    from compressor.runtime.load import as_stored

    loaded = read(folder, as_stored)
    manifest = loaded.manifest
    summary = {
        "digest": manifest.digest,
        "source": manifest.provenance.source.id,
        "method": manifest.provenance.method,
        "config": manifest.provenance.config,
        "edits": manifest.provenance.edits,
        **sizes(manifest),
        "perplexity": manifest.quality.perplexity,
        "perplexity_ratio": manifest.quality.perplexity_ratio,
    }
    if as_json:
        components = {name: size.model_dump() for name, size in manifest.bytes.items()}
        matrices = {name: spec.model_dump() for name, spec in loaded.specs.items()}
        print(json.dumps(summary | {"bytes": components, "matrices": matrices}))
        return
    print_object(summary, as_json)
    table = Table("component", "on disk", "in memory", "dense fp32", title="bytes")
    for name, size in manifest.bytes.items():
        table.add_row(name, f"{size.disk:,}", f"{size.resident:,}", f"{size.dense_fp32:,}")
    Console().print(table)
    for name, spec in loaded.specs.items():
        codecs, stored = ", ".join(sorted(codecs_of(spec))), sum(part.num_bytes for part in tensors_of(spec).values())
        print(f"{name}: {spec.format} {spec.shape[0]} x {spec.shape[1]}, {codecs}, {stored:,} bytes")


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="At most this many tokens.")] = 40,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    draft: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Smaller artefact that proposes tokens; the text is the same."),
    ] = None,
) -> None:
    """Print the prompt and its continuation."""
    import numpy as np

    from compressor.runtime.generate import generate as continue_ids
    from compressor.runtime.load import load

    loaded, model = load(folder)
    end = loaded.config.eos_token_id
    ids = loaded.tokenizer.encode(prompt, add_special_tokens=False).ids or [end]
    if len(ids) > (limit := loaded.config.n_positions):
        raise ValueError(f"prompt must have at most {limit} tokens, not {len(ids)}")
    proposing = None if draft is None else _draft_of(loaded, draft)
    rows = continue_ids(
        model, np.array([ids]), max_new_tokens, temperature=temperature, seed=seed, progress=bar, draft=proposing
    )
    kept = rows[0, len(ids) :].tolist()
    kept = kept[: kept.index(end)] if end in kept else kept
    print(prompt + loaded.tokenizer.decode(kept))


def _draft_of(loaded: Any, folder: Path) -> Any:
    """Return what is in a folder as a draft for the artefact `loaded`; raises ValueError if its tokens are others."""
    from compressor.artifact.tokenizer import same_tokens
    from compressor.runtime.generate import Draft
    from compressor.runtime.load import load

    drafting, model = load(folder)
    same_size = drafting.config.vocab_size == loaded.config.vocab_size
    if not same_size or not same_tokens(drafting.tokenizer, loaded.tokenizer):
        raise ValueError(f"draft: {folder} must have the tokenizer and vocabulary of {loaded.name}")
    return Draft(model)


@app.command()
def serve(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artefacts; the first is the default.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on, 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on, 8000 by default.")] = None,
    uds: Annotated[Path | None, typer.Option(metavar="PATH", help="Unix socket to listen on instead.")] = None,
    root_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Prefix that a proxy puts before routes.")
    ] = None,
    default_model: Annotated[
        str | None, typer.Option(help="Serves requests that name none, the first by default.")
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Artefact, or name of a served one, that proposes tokens to the others."),
    ] = None,
) -> None:
    """Serve artefacts over HTTP; what is not given here is as TTGPT_* variables say."""
    given = {"host": host, "port": port, "uds": uds, "root-path": root_path, "default-model": default_model}
    given["draft"] = draft
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    arguments = [*options, "--", *map(str, folders)]
    os.execv(sys.executable, [sys.executable, "-m", "service", *arguments])  # noqa: S606


app.command()(bench)


@app.command()
def dashboard(
    png: Annotated[Path, typer.Option(metavar="FILE", help="Picture to write; .svg and .pdf work, too.")],
    url: Annotated[str, typer.Option(help="Metrics of a running service.")] = "http://127.0.0.1:8000/metrics",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Draw footprint against quality as a running service reports them."""
    from compressor import dashboard as live

    if png.exists() and not force:
        raise ValueError(f"png: {png} exists; choose another name or add --force")
    if png.is_dir():
        raise ValueError(f"png: {png} is a folder")
    require_writable("png", png.parent)
    live.draw(live.read(live.fetch(url)), png)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
) -> None:
    """Write an artefact as a dense fp32 checkpoint that transformers and lm-eval load."""
    from compressor import huggingface, stored

    huggingface.refuse_existing(out)
    with claimed(out) as run:
        loaded = stored.read(folder)
        require_space("out", run, loaded.manifest.dense_bytes)
        huggingface.export(stored.gpt2(loaded), loaded.tokenizer_json, out)


@app.command("lm-eval-task")
def lm_eval_task(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    text: TextFile = None,
) -> None:
    """Write tasks for lm-eval about a text, and print the command that runs them on an export."""
    from compressor.evaluation import lm_eval as lm_eval_tasks
    from compressor.runtime.reference import VALIDATION_TEXT

    lm_eval_tasks.refuse_existing(out)
    with claimed(out):
        print(lm_eval_tasks.write(text or VALIDATION_TEXT, out))


@app.command()
def pretrain(
    config: Annotated[str, typer.Option(metavar="FILE", help="What to train, or gpt2-mini for the recipe of that.")],
    text: Annotated[list[Path], typer.Option(metavar="FILE", help="To train on: text, .xz, or a folder of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The artefact's folder; checkpoints are in DIR.run.")],
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="To measure on; by default the end of the text.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artefact in DIR.")] = False,
) -> None:
    """Train a GPT-2 of any shape and format from scratch; resumes where an interrupted run stopped."""
    from compressor.pretraining import build
    from compressor.pretraining.config import SHIPPED, read_config
    from compressor.pretraining.display import shown
    from compressor.process.memory import keep_freed_memory

    keep_freed_memory()
    manifest = build.pretrain(
        read_config(SHIPPED.get(config, Path(config))),
        text,
        out,
        validation=validation,
        force=force,
        progress=bar,
        watch=shown,
        echo=say,
    )
    run, quality = manifest.provenance.config, manifest.quality
    speed = f"{run['tokens_per_second']:,} tokens/s"
    print(
        f"{out}: {run['parameters']:,} parameters, {megabytes(manifest.weight_bytes)}, {speed}; "
        f"perplexity {figure(quality.perplexity, 2)} on {quality.tokens:,} tokens of {quality.text}"
    )


vocab = typer.Typer(help="Edit single tokens of an artefact; all others keep their bytes.")
app.add_typer(vocab, name="vocab")

TokenText = Annotated[str, typer.Option("--token", metavar="TEXT", help="The token's text, with its leading space.")]
LikeText = Annotated[
    str | None, typer.Option("--like", metavar="TEXT", help="Take the mean vector of this text's tokens.")
]
VectorFile = Annotated[
    Path | None,
    typer.Option("--vector", metavar="FILE", help="safetensors with one tensor 'vector' [D], or JSON: D numbers."),
]


@vocab.command("set")
def vocab_set(folder: Folder, token: TokenText, like: LikeText = None, vector: VectorFile = None) -> None:
    """Give an existing token another vector."""
    from compressor.vocab import set_token

    with claimed(folder.resolve(), "folder"):
        _print_edit(folder, token, set_token(folder, token, like=like, vector=vector))


@vocab.command("add")
def vocab_add(folder: Folder, token: TokenText, like: LikeText = None, vector: VectorFile = None) -> None:
    """Add a token to the tokenizer, the embedding and the head."""
    from compressor.vocab import add_token

    with claimed(folder.resolve(), "folder"):
        _print_edit(folder, token, add_token(folder, token, like=like, vector=vector))


def _print_edit(folder: Path, token: str, edited: Any) -> None:
    print(
        f"{folder}: {json.dumps(token, ensure_ascii=False)} is token {edited.token_id}, its vector stored with a "
        f"relative error of {edited.error:.2%}; {megabytes(edited.manifest.weight_bytes)}; the quality figures in the "
        "manifest are of before the edit"
    )


@app.command()
def compare(
    rerun: Annotated[bool, typer.Option("--rerun", help="Run every experiment, not only what is missing.")] = False,
    books: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with train.txt.xz and valid.txt.xz, for those on books.")
    ] = None,
    executor: ExecutorName = "local",
    workers: Workers = None,
) -> None:
    """Run the experiments that have no result yet and refresh the pages that show them."""
    from compressor.experiments.runner import check_books, run_missing
    from compressor.experiments.tables import BLOCKS, refresh_pages
    from compressor.pages import check
    from compressor.process.memory import keep_freed_memory
    from compressor.recipes.executor import Executor

    tasks = Executor(kind=executor, workers=workers)
    check(BLOCKS)
    check_books(books)
    keep_freed_memory()
    for name in run_missing(books=books, rerun=rerun, executor=tasks, progress=bar):
        print(f"ran {name}")
    refresh_pages()
