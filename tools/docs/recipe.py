"""docs/recipe.md."""

from __future__ import annotations

from typing import Any

from tools.docs.tables import table


def recipe_table() -> str:
    """Every key of a recipe, its default and what it may be."""
    from ffn_fusion.pipeline.recipe import Recipe

    rows = []
    schema = Recipe.model_json_schema()

    def walk(properties: dict[str, Any], prefix: str) -> None:
        for key, entry in properties.items():
            ref = entry.get("$ref") or (entry.get("allOf") or [{}])[0].get("$ref")
            if ref:
                walk(schema["$defs"][ref.rsplit("/", 1)[1]]["properties"], f"{prefix}{key}.")
            else:
                default = "required" if "default" not in entry else f"`{entry['default']}`"
                rows.append((f"`{prefix}{key}`", default, _allowed(entry)))

    walk(schema["properties"], "")
    return table(("key", "default", "allowed"), rows)


def _allowed(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_allowed(option) for option in entry["anyOf"])
    if "$ref" in entry:
        return "stages of the keys above"
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        return f"list of {_allowed(entry.get('items', {}))}"
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "null": "nothing",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = " ".join(f"{sign} {entry[key]}" for key, sign in bounds.items() if key in entry)
    return f"{'path' if entry.get('format') == 'path' else names.get(entry.get('type', ''), 'anything')} {said}".strip()
