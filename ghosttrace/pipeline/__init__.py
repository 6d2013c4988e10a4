"""The annotation pipeline: from raw chains of thought to training rows with blocks and mementos.

    from ghosttrace.pipeline import Endpoint, build

    endpoint = Endpoint("http://127.0.0.1:8000/v1", model="NAME")
    result = build("traces.jsonl", "out", endpoint)
    result.rows()      # pandas: one row per accepted trace
    result.set_aside   # traces that did not pass, each with its reason

The stages are functions from a row to a row: `split`, `score`, `segment`, `compress`, `judge`; `select` makes the rows,
and `assemble` turns them into training rows.
"""

from typing import TYPE_CHECKING

from ghosttrace.lazy import attribute_loader

if TYPE_CHECKING:
    from ghosttrace.pipeline.assembly import assemble
    from ghosttrace.pipeline.calls import CallCache, StageCost
    from ghosttrace.pipeline.check import CheckReport, RowProblem, check_dataset, row_problems
    from ghosttrace.pipeline.client import Client
    from ghosttrace.pipeline.compression import compress
    from ghosttrace.pipeline.dataset import push_to_hub
    from ghosttrace.pipeline.endpoint import Endpoint
    from ghosttrace.pipeline.estimate import StageEstimate, estimate_costs
    from ghosttrace.pipeline.judgement import judge
    from ghosttrace.pipeline.rows import Certificate, Memento, Row, RowError, SetAside, count_reasons, read_rows
    from ghosttrace.pipeline.run import BuildResult, build, seed_rows
    from ghosttrace.pipeline.scoring import score
    from ghosttrace.pipeline.segmentation import BlockLimits, best_segmentation, segment
    from ghosttrace.pipeline.selection import Filters, select
    from ghosttrace.pipeline.sentences import split_sentences
    from ghosttrace.pipeline.settings import Quality
    from ghosttrace.pipeline.stage_files import StageResult, run_assemble, run_select, run_stage
    from ghosttrace.pipeline.stages import Settings, split

__getattr__ = attribute_loader(__name__, __file__)

__all__ = [
    "BlockLimits",
    "BuildResult",
    "CallCache",
    "Certificate",
    "CheckReport",
    "Client",
    "Endpoint",
    "Filters",
    "Memento",
    "Quality",
    "Row",
    "RowError",
    "RowProblem",
    "SetAside",
    "Settings",
    "StageCost",
    "StageEstimate",
    "StageResult",
    "assemble",
    "best_segmentation",
    "build",
    "check_dataset",
    "compress",
    "count_reasons",
    "estimate_costs",
    "judge",
    "push_to_hub",
    "read_rows",
    "row_problems",
    "run_assemble",
    "run_select",
    "run_stage",
    "score",
    "seed_rows",
    "segment",
    "select",
    "split",
    "split_sentences",
]
