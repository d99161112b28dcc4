"""Documentation that is generated is up to date, and what it promises is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import ffn_fusion
from ffn_fusion.cli.main import app
from ffn_fusion.pipeline.recipe import Recipe
from ffn_fusion.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_are_spelt_right(page: Path) -> None:
    """Every verb and option in the shell examples is one that the command line has."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for code in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        for line in code.splitlines():
            if line.startswith("ffn-fusion "):
                _, verb, *words = shlex.split(line, comments=True)
                known = {name for option in verbs[verb].params for name in (*option.opts, *option.secondary_opts)}
                assert {word for word in words if word.startswith("-")} <= known, line


def test_every_public_name_is_there() -> None:
    for name in ffn_fusion.__all__:
        assert getattr(ffn_fusion, name).__doc__, name
    with pytest.raises(AttributeError):
        ffn_fusion.nothing_of_that_name  # noqa: B018


def test_python_examples_in_the_docs_compile() -> None:
    for page in (ROOT / "docs" / "api.md", ROOT / "README.md"):
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
            compile(code, str(page), "exec")


OTHERS = {"--nproc-per-node", "--merge"}
"""Options of other programs that errors name: torchrun's, llama.cpp's."""


def said_in_errors() -> set[tuple[str, str]]:
    """(file, text) of every piece of text inside a call of an error class."""
    found = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Error"):
                texts = (node.value for node in ast.walk(call) if isinstance(node, ast.Constant))
                found |= {(path.name, text) for text in texts if isinstance(text, str)}
    return found


def test_errors_name_options_and_verbs_that_exist() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    options = {name for verb in verbs.values() for part in verb.params for name in (*part.opts, *part.secondary_opts)}
    for file, text in said_in_errors():
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options | {"--help"} | OTHERS, (file, text)
        assert set(re.findall(r"`ffn-fusion ([a-z-]+)", text)) <= set(verbs), (file, text)


def test_commands_in_the_source_have_options_of_their_verb() -> None:
    """In hints, help and docstrings: from the verb to the end of the clause."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for verb, words in re.findall(r"ffn-fusion ([a-z-]+)([^`;:()\n]*)", node.value):
                    if verb in verbs:
                        own = {name for part in verbs[verb].params for name in (*part.opts, *part.secondary_opts)}
                        asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", words))
                        assert asked <= own | {"--help"}, (path.name, node.value)


def keys_of(kind: type[Settings], path: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield path + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from keys_of(field.annotation, f"{path}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_recipe_keys_are_spelt_right(page: Path) -> None:
    keys = set(keys_of(Recipe))
    sections = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    for key in re.findall(rf"`((?:{sections})\.[a-z0-9_.]+)", page.read_text(encoding="utf-8")):
        assert key in keys or key.endswith((".json", ".txt", ".safetensors")), key
