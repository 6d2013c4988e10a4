"""A privacy audit as a Markdown card of one page, to go with a model or a release."""

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.page import TEMPLATES, p_value, plain
from ghosttrace.report.audit import advice as audit_advice
from ghosttrace.report.audit import wording as audit_words

COSTS = (
    ("Extra prefill tokens a trace", "extra_prefill_tokens"),
    ("All tokens computed, times those without", "prefill_ratio"),
    ("Time, times that without", "latency_ratio"),
    ("Most keys and values held, times those without", "kv_ratio"),
)
"""The costs of a defence: what each is for people, and its name in the summary."""

MAX_ROWS = 20  # rows of findings: the card is one page
MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def card(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The card.

    Args:
        summary: summary.json.
        run: run.json.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "p": p_value}
    called = audit_words.command(run)
    return environment.get_template("audit_card.md.j2").render(
        summary=summary,
        run=run,
        words=audit_words,
        judged=audit_words.judged_rows(summary) if summary["valid"] else [],
        threats=audit_words.by_threat(summary),
        controls=audit_words.controls(summary),
        steps=audit_advice.next_steps(summary),
        limitations=audit_advice.limitations(summary),
        costs=COSTS,
        most=MAX_ROWS,
        command=Safe(" ".join(called.split())) if called else None,  # an indented block shows all of it as it is
    )


def escape_markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, on one line."""
    if isinstance(value, Safe) or not isinstance(value, str):
        return value
    return MARKDOWN_SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", value))
