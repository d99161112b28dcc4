"""docs/portability.md."""

from __future__ import annotations

from tools.docs.tables import table


def engine_table() -> str:
    """Which rule is which engine's, and whether ``check --fix`` rewrites what breaks it."""
    from ffn_fusion.portability.form import FORM_RULES
    from ffn_fusion.portability.own_form import OWN_FORM_RULES
    from ffn_fusion.portability.rule import ENGINES
    from ffn_fusion.portability.shipped import SHIPPED_RULES

    rows = []
    for rule in (*OWN_FORM_RULES, *FORM_RULES, *SHIPPED_RULES):
        word = "fixed" if rule.fix else "cannot"
        seen = {engine: f"**{word}**" if reason.seen else word for engine, reason in rule.engines.items()}
        rows.append((rule.name, rule.asks, *(seen.get(engine, "") for engine in ENGINES)))
    return table(("rule", "asks that", *ENGINES), rows)


def engine_reasons() -> str:
    """What each engine does with a child that breaks a rule, and what that was run in or read from."""
    from ffn_fusion.portability.form import FORM_RULES
    from ffn_fusion.portability.own_form import OWN_FORM_RULES
    from ffn_fusion.portability.rule import ENGINES, SOURCES
    from ffn_fusion.portability.shipped import SHIPPED_RULES

    lines = []
    for engine in ENGINES:
        lines += [f"* **{engine}** ({SOURCES[engine]})"]
        said: dict[tuple[str, bool], list[str]] = {}
        for rule in (*OWN_FORM_RULES, *FORM_RULES, *SHIPPED_RULES):
            if engine in rule.engines:
                reason = rule.engines[engine]
                said.setdefault((reason.text, reason.seen), []).append(rule.name)
        for (text, seen), names in said.items():
            how = "" if seen else " (read in its source, not run)"
            lines.append(f"    * {', '.join(names)}: {text}{how}")
    return "\n".join(lines)


def fixes_table() -> str:
    """How ``check --fix`` rewrites what breaks a rule."""
    from ffn_fusion.portability.form import FORM_RULES

    return table(("rule", "how it's rewritten"), ((rule.name, rule.fix) for rule in FORM_RULES if rule.fix))
