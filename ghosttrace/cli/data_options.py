"""Options that the commands of `ghosttrace data` share, and the settings made from them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.cli.options import parse_integers
from ghosttrace.errors import UserError

if TYPE_CHECKING:
    from ghosttrace.pipeline import Endpoint, Settings

Sources = Annotated[
    list[str], typer.Argument(help="Reasoning traces: JSON, JSONL or Parquet files, or hub ids of data sets.")
]
Rows = Annotated[str, typer.Argument(help="File of rows that the stage before has written.")]
OutFile = Annotated[Path, typer.Option(help="JSONL file to write.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of a model whose tokenizer counts tokens. Default: an estimate."),
]


def endpoint_options(
    endpoint: Annotated[
        str, typer.Option(help="Address of an OpenAI-compatible endpoint, up to /v1.")
    ] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint.")] = "default",
    key_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the key of the endpoint.")
    ] = "OPENAI_API_KEY",
    request: Annotated[
        str, typer.Option(help="Further fields of every request, as JSON, e.g. for reasoning effort.")
    ] = '{"temperature": 0}',
    concurrency: Annotated[int, typer.Option(help="Number of requests at once.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 600.0,
    retries: Annotated[int, typer.Option(help="Repetitions of a request that fails.")] = 5,
    price_in: Annotated[float, typer.Option(help="Dollars for a million tokens of prompt.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars for a million tokens of answer.")] = 0.0,
    max_cost: Annotated[
        float | None, typer.Option(help="Dollars after which no request is sent, over all runs in the folder.")
    ] = None,
) -> None:
    """Declare the options of the endpoint."""


def select_options(
    min_tokens: Annotated[int, typer.Option(help="Shortest reasoning, in tokens.")] = 400,
    max_tokens: Annotated[int | None, typer.Option(help="Longest reasoning, in tokens. Default: unlimited.")] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of traces per source. Default: all.")] = None,
) -> None:
    """Declare the options of the selection."""


def segment_options(
    min_block_tokens: Annotated[int, typer.Option(help="Shortest block, in tokens.")] = 200,
    max_block_tokens: Annotated[int | None, typer.Option(help="Longest block. Default: unlimited.")] = None,
    min_blocks: Annotated[int, typer.Option(help="Fewest blocks of a trace.")] = 1,
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks of a trace. Default: unlimited.")] = None,
    spread_weight: Annotated[float, typer.Option(help="Weight of uneven block lengths, lambda in the paper.")] = 0.5,
) -> None:
    """Declare the options of the segmentation."""


def score_options(
    windows: Annotated[
        str, typer.Option(help="Boundaries in a window, one size for each pass, without a common divisor.")
    ] = "16,11",
) -> None:
    """Declare the options of the boundary scores."""


def quality_options(
    threshold: Annotated[int, typer.Option(help="Points of 10 from which a memento is accepted.")] = 8,
    rounds: Annotated[int, typer.Option(help="How often mementos are rewritten that were not accepted.")] = 2,
    max_share: Annotated[float, typer.Option(help="Most tokens of a memento, as a share of its block.")] = 0.25,
) -> None:
    """Declare the options of the mementos."""


def make_endpoint(options: Mapping[str, Any]) -> "Endpoint":
    """Return the endpoint that the options describe.

    Raises:
        UserError: an option is invalid.
    """
    from ghosttrace.pipeline import Endpoint

    try:
        fields = json.loads(options["request"])
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f'--request must be a JSON object such as {{"temperature": 1}}, not {options["request"]!r}')
    names = ("model", "concurrency", "timeout", "retries", "price_in", "price_out", "max_cost")
    return Endpoint(
        base_url=options["endpoint"],
        api_key=os.environ.get(options["key_variable"]) or "none",
        request=fields,
        **{name: options[name] for name in names},
    )


def make_settings(options: Mapping[str, Any]) -> "Settings":
    """Return the settings that the options describe; options that a command lacks keep their default.

    Raises:
        UserError: an option is invalid.
    """
    from ghosttrace.pipeline import BlockLimits, Filters, Quality, Settings

    limits = {
        "min_tokens": "min_block_tokens",
        "max_tokens": "max_block_tokens",
        "min_blocks": "min_blocks",
        "max_blocks": "max_blocks",
        "spread_weight": "spread_weight",
    }
    windows = parse_integers(options.get("windows"), "--windows")
    return Settings(
        tokenizer=options.get("tokenizer"),
        filters=Filters(**_given(options, {"min_tokens": "min_tokens", "max_tokens": "max_tokens"})),
        limits=BlockLimits(**_given(options, limits)),
        quality=Quality(**_given(options, {name: name for name in ("threshold", "rounds", "max_share")})),
        **({} if windows is None else {"windows": windows}),
    )


def _given(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: options[option] for field, option in names.items() if option in options}


def need_pipeline() -> None:
    """Check that the packages of the pipeline are installed.

    Raises:
        UserError: one is missing.
    """
    try:
        import ghosttrace.pipeline.run  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -e '.[data]' in the GhostTrace checkout"
        ) from error
