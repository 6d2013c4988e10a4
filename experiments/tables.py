"""Write the tables of README.md, RESULTS.md and docs/ from the recorded results.

    PYTHONPATH=. python -m experiments.tables          # or: make tables

A page marks a table by `<!-- table: NAME -->` and `<!-- end of table -->`; everything between is replaced. The figures
come from `experiments/results` and `benchmarks/results`. `tests/test_documents.py` fails while a table is out of date.
"""

import re
from collections.abc import Callable
from pathlib import Path

from experiments.benchmark_tables import BENCHMARK_TABLES
from experiments.claims import claims
from experiments.decomposition_tables import DECOMPOSITION_TABLES
from experiments.effect_tables import EFFECT_TABLES
from experiments.patching_tables import PATCHING_TABLES
from experiments.reproduce_tables import REPRODUCE_TABLES
from experiments.result_tables import RESULT_TABLES
from experiments.rl_tables import RL_TABLES
from experiments.scale_tables import SCALE_TABLES
from experiments.stock_tables import STOCK_TABLES
from experiments.story_tables import STORY_TABLES

ROOT = Path(__file__).parent.parent
TABLES: dict[str, Callable[[], str]] = {
    **RESULT_TABLES,
    **PATCHING_TABLES,
    **EFFECT_TABLES,
    **DECOMPOSITION_TABLES,
    **STOCK_TABLES,
    **STORY_TABLES,
    **RL_TABLES,
    **BENCHMARK_TABLES,
    **REPRODUCE_TABLES,
    **SCALE_TABLES,
    "claims": claims,
}
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """Return the text of a page with every marked table made from the recorded results.

    Raises:
        KeyError: A table is marked that is not in `TABLES`.
    """
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Rewrite every page whose tables are out of date."""
    for page in pages():
        old = page.read_text()
        new = with_tables(old)
        if new != old:
            page.write_text(new)
            print(f"updated {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
