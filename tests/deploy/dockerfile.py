"""The little of the Dockerfile language that ours use: stages, their instructions, their environment."""

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests.deploy.manifests import ROOT


@dataclass
class Stage:
    """One FROM with what follows; `parent` is another stage or None for an image of elsewhere."""

    name: str
    image: str
    parent: "Stage | None"
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        """Return the argument of the last such instruction, here or in a parent."""
        own = [argument for word, argument in self.instructions if word == keyword]
        if own:
            return own[-1]
        return self.parent.last(keyword) if self.parent else None

    def every(self, keyword: str) -> list[str]:
        """Return the arguments of all such instructions, the parents' first."""
        inherited = self.parent.every(keyword) if self.parent else []
        return inherited + [argument for word, argument in self.instructions if word == keyword]

    def command(self, keyword: str) -> list[str]:
        """Return an ENTRYPOINT or CMD, which must be in exec form."""
        words: list[str] = json.loads(self.last(keyword) or "[]")
        return words

    def pairs(self, keyword: str) -> dict[str, str]:
        """Return all of ENV or LABEL."""
        found: dict[str, str] = {}
        for argument in self.every(keyword):
            for key, quoted, bare in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S+))', argument):
                found[key] = quoted or bare
        return found

    def healthcheck(self) -> list[str]:
        """Return the command of the health check."""
        words: list[str] = json.loads((self.last("HEALTHCHECK") or "").partition("CMD ")[2])
        return words


def stages(name: str) -> dict[str, Stage]:
    """Return the named stages of docker/`name`.Dockerfile; the one built by default is called ""."""
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
    found: dict[str, Stage] = {}
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", joined.partition("\nFROM ")[0], re.MULTILINE))
    current = Stage("", "", None)
    for line in filter(str.strip, joined.splitlines()):
        word, _, argument = line.strip().partition(" ")
        if word == "FROM":
            image, _, alias = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], argument).partition(" AS ")
            current = found[alias] = Stage(alias, image, found.get(image))
        else:
            current.instructions.append((word, argument.strip()))
    return found | {"": current}


def ignored(folder: str, names: list[str]) -> set[str]:
    """Return which names in a folder never reach a build, by the patterns of .dockerignore for any depth."""
    patterns = re.findall(r"^\*\*/(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}


def dockerfiles() -> list[Path]:
    """Return all Dockerfiles."""
    return sorted((ROOT / "docker").glob("*.Dockerfile"))
