"""Count words that mark stilted English in docstrings, comments, pages and notebooks, per 10,000 words.

    python tests/prose.py                       # one line a word, with the limit that the test holds it to
    python tests/prose.py --list where behind   # each place, to rewrite it

A high rate marks places to read again, not faults: "where" is right for a place. The highest rates in five well-kept
libraries (torchmetrics, RecTools, lightning, torchtune, torchtitan) are the limits' origin. A limit may only fall.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "where": r"\bwhere\b",
    "behind": r"\bbehind\b",
    "beside": r"\bbeside\b",
    "so that": r"\bso that\b",
    "say": r"\b(says?|said|saying)\b",
    "tell": r"\b(tells?|told)\b",
    "whose": r"\bwhose\b",
    "stand": r"\b(stands?|stood)\b",
    "nobody": r"\b(nobody|no one)\b",
    "go on": r"\b(go|goes|went|gone|going) on\b",
    "as it is": r"\bas (it|they) (is|are|stands?)\b",
    "What ..": r"(?m)^\s*(What|Those|Where|Whose)\b",
    "there is": r"\bthere (is|are|was|were)\b",
}
LIMITS: dict[str, float] = {
    "where": 16,
    "behind": 1,
    "beside": 0.5,
    "so that": 4,
    "say": 0.5,
    "tell": 1,
    "whose": 6,
    "stand": 0.5,
    "nobody": 0.5,
    "go on": 0.5,
    "as it is": 1,
    "What ..": 1,
    "there is": 12,
}
LEAST_IF = 24


def texts(repository: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and text of all prose: docstrings, comments, pages, and Markdown cells of notebooks."""
    for file in sorted((repository / "seqrec").rglob("*.py")):
        yield from ((file, line, text) for line, text in _python(file.read_text(encoding="utf-8")))
    for file in (repository / "README.md", *sorted((repository / "notebooks").rglob("*.md"))):
        yield from ((file, line, text) for line, text in _markdown(file.read_text(encoding="utf-8")))
    for file in sorted((repository / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"], 1):
            if cell["cell_type"] == "markdown":
                yield from ((file, number, text) for _, text in _markdown("".join(cell["source"])))


def rates(repository: Path) -> dict[str, float]:
    """Return the uses of each word, and of "if", per 10,000 words of prose."""
    found = [text for _, _, text in texts(repository)]
    total = sum(len(re.findall(r"[A-Za-z']+", text)) for text in found)
    return {
        word: round(1e4 * sum(len(_pattern(word).findall(text)) for text in found) / max(total, 1), 2)
        for word in (*WORDS, "if")
    }


def _pattern(word: str) -> re.Pattern[str]:
    # A sentence begins with a capital; everything else counts in either case.
    return re.compile(WORDS.get(word, r"\bif\b"), 0 if word == "What .." else re.IGNORECASE)


def _python(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|pragma)", token.string):
            yield token.start[0], token.string.lstrip("# ")


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code and not line.startswith("|"):
            yield number, line


def main() -> None:
    """Print the rates, or the places of some words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", nargs="+", metavar="WORD", choices=list(WORDS), default=[])
    repository = Path(__file__).parents[1]
    wanted = parser.parse_args().list
    for word in wanted:
        for file, line, text in texts(repository):
            for hit in _pattern(word).finditer(text):
                near = text[max(0, hit.start() - 50) : hit.end() + 50].replace("\n", " ")
                print(f"{file.relative_to(repository)}:{line + text[: hit.start()].count(chr(10))}: .. {near} ..")
    if not wanted:
        for word, rate in rates(repository).items():
            limit = f"at most {LIMITS[word]}" if word in LIMITS else f"at least {LEAST_IF}"
            print(f"{word:10} {rate:7.2f}  {limit}")


if __name__ == "__main__":
    main()
