"""What several commands share: options, sizes, and options that are fields of a dataclass."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from compressor.errors import check_range
from compressor.figures import figure

if TYPE_CHECKING:
    from compressor.artifact.manifest import Manifest

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artefact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ExecutorName = Annotated[str, typer.Option("--executor", metavar="NAME", help="Where tasks run: local, ray.")]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tasks at a time: 1 here by default, which is this process; on Ray one per CPU."),
]
TextFile = Annotated[Path | None, typer.Option(help="UTF-8 text file; by default the text in the package.")]
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def size_of(name: str, text: str) -> int:
    """Return the bytes that `text` says, such as 8MB; raises ValueError, naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB)?", text)
    if match is None:
        raise ValueError(f"{name} must be a number of B, kB, MB or GB such as 8MB, not {text!r}")
    size = int(Fraction(match[1]) * UNITS[match[2] or "B"])
    check_range(name, size, 1, 10**15)
    return size


def megabytes(size_bytes: int) -> str:
    """Return a size as it is printed."""
    return f"{size_bytes / 1e6:.2f} MB"


def say(message: str) -> None:
    """Print what a user should know, apart from the result."""
    print(message, file=sys.stderr)


def sizes(manifest: "Manifest") -> dict[str, Any]:
    """Return the sizes that are printed of an artefact, in bytes."""
    return {
        "weight_bytes": manifest.weight_bytes,
        "resident_bytes": manifest.resident_bytes,
        "dense_bytes": manifest.dense_bytes,
        "ratio_to_fp32": round(manifest.dense_bytes / manifest.weight_bytes, 4),
        "ratio_to_fp16": round(manifest.dense_bytes / 2 / manifest.weight_bytes, 4),
    }


def print_object(values: dict[str, Any], as_json: bool) -> None:
    """Print values by name, one a line, or as one JSON object."""
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name}: {figure(value, 4) if isinstance(value, float) else value}")


def spread(command: Callable[..., None], further: Mapping[str, Any]) -> Callable[..., None]:
    """Return `command` for typer: each of its parameters that is a dataclass becomes one option per field.

    Args:
        command: its last parameter takes those of the further options that are given, by name.
        further: annotations of options that are None by default.
    """
    *own, last = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    parameters = [p for p in own if p.name not in groups]
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        parameters += [_option(field.name, hints[field.name], field.default) for field in fields(group)]
    known = {parameter.name for parameter in parameters}
    parameters += [_option(name, hint, None) for name, hint in further.items() if name not in known]

    def run(**values: Any) -> None:
        given = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        others = {name: values.pop(name) for name in further if name not in known}
        chosen = {name: value for name, value in others.items() if value is not None}
        command(**values, **given, **{last.name: chosen})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
