"""docs/recipe.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.docs.tables import table

if TYPE_CHECKING:
    from ffn_fusion.settings import Settings


def recipe_table(kind: type[Settings] | None = None) -> str:
    """A row for every key of a recipe: its default, what it may be, and its description.

    Args:
        kind: the recipe's class, if it isn't ``Recipe``.
    """
    from ffn_fusion.pipeline.recipe import Recipe

    rows = []
    schema = (kind or Recipe).model_json_schema()

    def walk(properties: dict[str, Any], prefix: str) -> None:
        for key, entry in properties.items():
            ref = entry.get("$ref") or (entry.get("allOf") or [{}])[0].get("$ref")
            if ref:
                walk(schema["$defs"][ref.rsplit("/", 1)[1]]["properties"], f"{prefix}{key}.")
            else:
                rows.append((f"`{prefix}{key}`", _default(entry), _allowed(entry), entry["description"]))

    walk(schema["properties"], "")
    return table(("key", "default", "allowed", "meaning"), rows)


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry:
        return "required"
    value = entry["default"]
    return "" if value in (None, []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_allowed(option) for option in entry["anyOf"] if option.get("type") != "null")
    if "$ref" in entry:
        return "stages of the keys above"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        return f"list of {_allowed(entry.get('items', {}))}"
    names = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = " ".join(f"{sign} {entry[key]:,}" for key, sign in bounds.items() if key in entry)
    formats = {"path": "path", "ranges": "ranges, like `5-10, 17`", "size": "size, like `16GiB`"}
    return f"{formats.get(entry.get('format', ''), names.get(entry.get('type', ''), 'anything'))} {said}".strip()
