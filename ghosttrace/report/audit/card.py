"""The Markdown card of a privacy audit: one page that accompanies a model or a release."""

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

from ghosttrace.report.ablation.page import TEMPLATES, p_value, plain
from ghosttrace.report.audit import advice as audit_advice
from ghosttrace.report.audit import wording as audit_words
from ghosttrace.report.command import repeat_command

COSTS = (
    ("Extra prefill tokens per trace", "extra_prefill_tokens"),
    ("Tokens computed, relative to no defence", "prefill_ratio"),
    ("Time, relative to no defence", "latency_ratio"),
    ("Peak KV cache, relative to no defence", "kv_ratio"),
)
"""Costs of a defence: label and key in the summary."""

MAX_ROWS = 20  # rows of findings, so that the card stays on one page
MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def card(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return the card as Markdown text.

    Args:
        summary: Content of summary.json.
        run: Content of run.json.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "p": p_value}
    command_line = repeat_command(run)
    return environment.get_template("audit_card.md.j2").render(
        summary=summary,
        run=run,
        wording=audit_words,
        judged=audit_words.judged_rows(summary) if summary["valid"] else [],
        threats=audit_words.by_threat(summary),
        controls=audit_words.controls(summary),
        steps=audit_advice.next_steps(summary),
        limitations=audit_advice.limitations(summary),
        costs=COSTS,
        max_rows=MAX_ROWS,
        # The command is in an indented block, where Markdown needs no escapes.
        command=Safe(" ".join(command_line.split())) if command_line else None,
    )


def escape_markdown(value: Any) -> Any:
    """Escape text so that Markdown shows it literally, on one line; other values pass unchanged."""
    if isinstance(value, Safe) or not isinstance(value, str):
        return value
    return MARKDOWN_SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", value))
