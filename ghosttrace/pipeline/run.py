"""`build`: all stages in one, from raw traces to a data set. Run again, it asks only what is not answered yet."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd
from pyarrow import parquet

from ghosttrace.data.read import iter_records
from ghosttrace.errors import UserError
from ghosttrace.pipeline.assembly import assemble
from ghosttrace.pipeline.calls import CallCache, StageCost
from ghosttrace.pipeline.client import Client
from ghosttrace.pipeline.dataset import DatasetWriter
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.files import LOG, committed_text, locked_folder, logged
from ghosttrace.pipeline.process import process
from ghosttrace.pipeline.prompt_files import VERSIONS, load_prompt
from ghosttrace.pipeline.rows import Row, SetAside, count_reasons, row_line, write_set_aside
from ghosttrace.pipeline.selection import select
from ghosttrace.pipeline.stages import Settings, Work, annotate, local_work, row_stages
from ghosttrace.report.dataset_card import dataset_card, shape_figure, shape_values
from ghosttrace.runs.folder import DISTRIBUTION, write_json
from ghosttrace.runs.progress import Progress, no_progress


@dataclass(frozen=True)
class BuildResult:
    """A finished build.

    Attributes:
        folder: its folder, with the data set, its card, rows.jsonl, set_aside.jsonl, calls.sqlite and build.log.
        counts: number of rows in each configuration.
        set_aside: the traces that did not pass a stage.
        costs: usage and cost of each stage, over all runs in the folder.
    """

    folder: Path
    counts: dict[str, int]
    set_aside: tuple[SetAside, ...]
    costs: tuple[StageCost, ...]

    @property
    def cost(self) -> float:
        """Dollars for all calls."""
        return sum(cost.cost for cost in self.costs)

    def rows(self, configuration: str = "full") -> pd.DataFrame:
        """Return the rows of a configuration: `default`, `full` or `rejected`."""
        return parquet.read_table(self.folder / configuration / "train.parquet").to_pandas()


def seed_rows(sources: Sequence[str | Path], settings: Settings, limit: int | None) -> Iterator[Row | SetAside]:
    """Yield the selected rows of all sources, and the traces that were dropped.

    Args:
        sources: files or hub ids, see `ghosttrace.data.read.iter_records`.
        settings: settings of the stages.
        limit: maximum number of traces of each source; None reads all.
    """
    records = ((Path(source).stem, islice(iter_records(source), limit)) for source in sources)
    return select(records, settings.filters, settings.count_tokens)


def build(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    endpoint: Endpoint,
    settings: Settings | None = None,
    *,
    seal_check: str | None = None,
    limit: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Turn raw reasoning traces into a data set with mementos.

    Args:
        sources: files or hub ids with reasoning traces; one or several.
        out: folder of the data set. A folder of an earlier or interrupted build keeps its answers.
        endpoint: the endpoint that scores, compresses and judges.
        settings: settings of the stages.
        seal_check: name of a model with memento attention that measures what each memento leaves out.
        limit: maximum number of traces of each source.
        ray: address of a Ray cluster, whose machines then send the requests and compute: `auto`, `local` or
            `HOST:PORT`, see `ghosttrace.cluster.connect.connected`. The result is the same.
        progress: called with ("traces", traces done, 0), because their number is not known beforehand.

    Raises:
        UserError: a source, the folder or the cluster cannot be used, the endpoint cannot answer, or the cost limit is
            reached.
    """
    settings = settings or Settings()
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    folder = Path(out)
    with (
        _place_of_work(ray, endpoint, settings, seal_check) as work,
        locked_folder(folder),
        logged(folder / "build.log"),
    ):
        configuration = _configuration(paths, endpoint, settings, seal_check, limit, ray)
        write_json(folder / "run.json", json.loads(endpoint.hide(json.dumps(configuration))))
        cache = CallCache(folder / "calls.sqlite")
        try:
            rows = seed_rows(paths, settings, limit)
            return asyncio.run(_build(rows, folder, endpoint, cache, settings, work, progress or no_progress))
        finally:
            cache.close()


@contextmanager
def _place_of_work(
    ray: str | None, endpoint: Endpoint, settings: Settings, seal_check: str | None
) -> Iterator[AbstractAsyncContextManager[Work]]:
    """Connect to the cluster if there is one, and yield what begins and ends the work."""
    if ray is None:
        leak_check = None
        if seal_check is not None:
            from ghosttrace.pipeline.leak_check import LeakCheck  # imported here because only it needs a model

            leak_check = LeakCheck.load(seal_check)
        yield nullcontext(local_work(settings, leak_check))
        return
    if "@" in endpoint.base_url.partition("://")[2].partition("/")[0]:
        raise UserError(
            "Ray shows the command line to everyone on the cluster: leave name and password out of the address of the "
            "endpoint, and give a key in the environment"
        )
    from ghosttrace.cluster.connect import connected

    with connected(ray) as machines:
        from ghosttrace.pipeline.on_cluster import cluster_work  # imported here because it needs Ray

        yield cluster_work(machines, endpoint, settings, seal_check)


def _configuration(
    sources: Sequence[str | Path],
    endpoint: Endpoint,
    settings: Settings,
    seal_check: str | None,
    limit: int | None,
    ray: str | None,
) -> dict[str, Any]:
    prompts = {name: load_prompt(name) for name in VERSIONS}
    return {
        "command": "data build",
        "sources": [str(source) for source in sources],
        "endpoint": {name: value for name, value in asdict(endpoint).items() if name != "api_key"},
        "settings": asdict(settings),
        "seal_check": seal_check,
        "limit": limit,
        "ray": ray,
        "prompts": {name: {"version": prompt.version, "sha256": prompt.sha256} for name, prompt in prompts.items()},
        "ghosttrace": version(DISTRIBUTION),
    }


async def _build(
    rows: Iterable[Row | SetAside],
    folder: Path,
    endpoint: Endpoint,
    cache: CallCache,
    settings: Settings,
    begin_work: AbstractAsyncContextManager[Work],
    progress: Progress,
) -> BuildResult:
    set_aside: list[SetAside] = []
    shapes: list[dict[str, Any]] = []
    async with begin_work as work, Client(endpoint, cache, work.send) as client:
        stages = row_stages(settings, client, work)
        results = process(rows, lambda row: annotate(row, stages, settings.quality), 2 * endpoint.concurrency)
        with DatasetWriter(folder) as writer, committed_text(folder / "rows.jsonl") as write:
            done = 0
            async for result in results:
                if isinstance(result, Row):
                    training_row = assemble(result, settings.quality)
                    writer.add(training_row)
                    write(row_line(result))
                    tokens = {"block_tokens": result.block_tokens, "memento_tokens": training_row["memento_tokens"]}
                    shapes.append({"domain": result.domain, **tokens})
                else:
                    set_aside.append(result)
                    LOG.info("set aside: %s in %s: %s", result.task_id, result.stage, result.reason)
                done += 1
                progress("traces", done, 0)
    costs = tuple(cache.costs())
    finished = BuildResult(folder, writer.counts, tuple(set_aside), costs)
    _write_summary(finished, endpoint.model, shapes)
    return finished


def _write_summary(result: BuildResult, model: str, shapes: Sequence[dict[str, Any]]) -> None:
    write_set_aside(result.folder / "set_aside.jsonl", result.set_aside)
    summary = {
        "command": "data build",
        "model": model,
        "prompts": {name: f"v{version}" for name, version in VERSIONS.items()},
        "rows": result.counts,
        "shape": [
            {"what": title, "mean": mean(values), "median": median(values)}
            for title, values in shape_values(shapes).items()
            if values
        ],
        "set_aside": count_reasons(result.set_aside),
        "costs": [asdict(cost) for cost in result.costs],
        "cost": result.cost,
    }
    write_json(result.folder / "summary.json", summary)
    (result.folder / "figures").mkdir(exist_ok=True)
    shape_figure(shapes).savefig(result.folder / "figures/shape.png", dpi=100)
    (result.folder / "README.md").write_text(dataset_card(summary), encoding="utf-8")
