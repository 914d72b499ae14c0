"""Fenced blocks, links and anchors of the documents, and a folder to run what they say. Knows no server."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import torch
from markdown_it import MarkdownIt
from markdown_it.token import Token

from integration_tests.pivot.problems import problems

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
GUIDES: Final = ROOT / "plugin" / "docs"
DOCUMENTS: Final = (README, *sorted(GUIDES.glob("*.md")))

SERVED: Final = "http://127.0.0.1:30000"
"""Where documents have their server."""

CPU_ONLY: Final = ' device="cpu", dtype="float32",'
"""What the Engine of a document is told on a machine without a GPU; with one, the document leaves it out."""

LANGUAGES: Final = ("bash", "python")
"""Of what a reader runs."""

SHOWN: Final = ("json", "yaml", "text")
"""Of what a reader looks at."""

RUN_S: Final = 300.0

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        document: where it stands.  line: of its fence, from 1.
        language: of the fence.
        text: without the fences and their indentation.
        not_run: the reason why no test runs it; None where one does.
    """

    document: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Return whether a test runs it."""
        return self.language in LANGUAGES and self.not_run is None

    @property
    def asks_server(self) -> bool:
        """Return whether it asks the server that documents have."""
        return SERVED in self.text

    @property
    def sampler(self) -> str | None:
        """Return the sampler that a request on /generate asks for; None of any other block."""
        found = re.search(r'"sampler": "(\w+)"', self.text)
        return found[1] if found and "/generate" in self.text else None


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, and those that are only indented: of no language."""
    tokens = _tokens(document)
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            mark = _NOT_RUN.search(before.content) if before and before.type == "html_block" else None
            assert token.map is not None
            found.append(
                Block(document, token.map[0] + 1, token.info, token.content, mark[1] if mark else None)
            )
    return found


def all_blocks() -> list[Block]:
    """Return the blocks of all documents."""
    return [block for document in DOCUMENTS for block in blocks(document)]


def marks(document: Path) -> int:
    """Return how many lines say that something is not run, wherever they stand."""
    return len(re.findall(r"^\s*<!-- not run", document.read_text(), flags=re.MULTILINE))


def links(document: Path) -> list[str]:
    """Return what the links and pictures of a document point to."""
    inner = [child for token in _tokens(document) for child in _deep(token)]
    named = [str(child.attrs.get("href") or child.attrs.get("src") or "") for child in inner]
    tags = [child.content for child in inner if child.type in ("html_inline", "html_block")]
    return [*filter(None, named), *re.findall(r'(?:src|href)="([^"]+)"', "\n".join(tags))]


def broken(document: Path) -> list[str]:
    """Return the links of a document whose file or anchor there is not."""
    return [link for link in links(document) if not link.startswith("http") and not _leads(document, link)]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    tokens, seen, found = _tokens(document), Counter[str](), set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            shown = "".join(
                child.content for child in inline.children or () if child.type in ("text", "code_inline")
            )
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def workplace(folder: Path) -> Path:
    """Return a folder in which blocks run: the checkout by links, and the files that readers bring.

    curl fails there where the server answers with an error.
    """
    for name in ("configs", "integration_tests", "plugin", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".curlrc").write_text("fail-with-body\n")
    prompts = [f'{{"prompt": "{problem.text}"}}\n' for problem in problems("R", 6, seed=1)]
    (folder / "prompts.jsonl").write_text("".join(prompts))
    return folder


def run(block: Block, folder: Path, url: str = SERVED) -> str:
    """Return what a block prints.

    Args:
        block: to run.
        folder: of `workplace`.
        url: of the server that it asks.

    Raises:
        AssertionError: it fails.
    """
    text = block.text.replace(SERVED, url)
    if torch.cuda.is_available():
        text = text.replace(CPU_ONLY, "")
    script = folder / "block.py"
    script.write_text(text)
    command = (
        [sys.executable, str(script)]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", text]
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CURL_HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
    )
    assert done.returncode == 0, f"{block} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text())


def _deep(token: Token) -> Iterator[Token]:
    yield token
    for child in token.children or ():
        yield from _deep(child)


def _leads(document: Path, link: str) -> bool:
    name, _, anchor = unquote(link).partition("#")
    target = document.parent / name if name else document
    return target.exists() and (not anchor or anchor in anchors(target))
