"""Training from Python: `ghosttrace.sft` and `ghosttrace.rl`, with the options of the commands."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttrace.errors import UserError
from ghosttrace.training.examples import Stage
from ghosttrace.training.result import RLResult, SftResult

if TYPE_CHECKING:
    from ghosttrace.training.rewards import Reward

MISSING = "pip install -e '.[train]' in the GhostTrace checkout"


def sft(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    stage: Stage = "memento",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    trainer: Mapping[str, Any] | None = None,
    **options: Any,
) -> SftResult:
    """Fine-tune a model in one stage, as `ghosttrace sft` does.

    Args:
        model: Bundled name, folder or hub id.
        data: Files, run folders of `ablate`, or hub ids.
        stage: `full`, `memento` or `sealed`.
        out: Run folder to create; by default a new folder under runs/.
        resume: Folder of an interrupted run to continue, with the same arguments.
        trainer: Arguments of `trl.SFTConfig` and `trl.ModelConfig`, such as `{"max_steps": 100, "use_peft": True}`, and
            `config`, a YAML file with more of them. Their defaults are those of the Memento paper.
        options: Further fields of `ghosttrace.training.recipe.Recipe`, such as `sealed_share=0.3`.

    Returns:
        The result; `load()` gives the trained model.

    Raises:
        UserError: The extra `train` is missing, or an argument, the model, the data or the folder does not permit it.

    Example:
        >>> import ghosttrace as gt
        >>> run = gt.sft("toy-open", "runs/answers", "sealed", trainer={"max_steps": 50})  # doctest: +SKIP
        >>> gt.ablate(run.load(), bench="ledger-h1", arms="restart")  # doctest: +SKIP
    """
    try:
        from ghosttrace.training.recipe import Recipe
        from ghosttrace.training.sft import sft as train
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: {MISSING}") from error
    _check_names(Recipe, options)
    if "eval_data" in options:
        options["eval_data"] = _names(options["eval_data"])
    if isinstance(options.get("sealed_arms"), str):
        options["sealed_arms"] = tuple(options["sealed_arms"].split(","))
    recipe = Recipe(_name(model), _names(data), stage, trainer=trainer_flags(trainer or {}), **options)
    return SftResult.open(train(recipe, _path(out), _path(resume)))


def rl(
    model: str | Path,
    bench: str,
    rewards: "str | Reward | Sequence[Reward]" = "correct",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    trainer: Mapping[str, Any] | None = None,
    **options: Any,
) -> RLResult:
    """Improve a model with verifiable rewards, as `ghosttrace rl` does.

    Args:
        model: Bundled name, folder or hub id of a model that was trained under a law.
        bench: Benchmark whose problems are the prompts.
        rewards: Rewards with weights, such as `correct,channel:-0.1`, or functions of TRL's form.
        out: Run folder to create; by default a new folder under runs/.
        resume: Folder of an interrupted run to continue, with the same arguments.
        trainer: Arguments of `trl.GRPOConfig` and `trl.ModelConfig`, as for `sft`.
        options: Further fields of `ghosttrace.training.rl.RLRecipe`, such as `sealed=True` or `channel_every=25`.

    Returns:
        The result; `load()` gives the trained model, `channel` the measurements of the ghost channel.

    Raises:
        UserError: The extra `train` is missing, or an argument, the model, the bench or the folder does not permit it.
    """
    try:
        from ghosttrace.training.rl import RLRecipe
        from ghosttrace.training.rl import rl as train
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: {MISSING}") from error
    _check_names(RLRecipe, options)
    functions = None if isinstance(rewards, str) else [rewards] if callable(rewards) else list(rewards)
    if functions is not None and not (functions and all(map(callable, functions))):
        raise UserError("rewards must be names with weights, such as 'correct,format:0.1', or functions")
    names = rewards if isinstance(rewards, str) else "correct"  # not used beside functions
    recipe = RLRecipe(_name(model), bench, names, trainer=trainer_flags(trainer or {}), **options)
    return RLResult.open(train(recipe, _path(out), _path(resume), rewards=functions))


def trainer_flags(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return arguments of a trainer as flags of the command line.

    Example:
        >>> trainer_flags({"max_steps": 5, "bf16": False, "lora_target_modules": ["q_proj", "v_proj"]})
        ('--max_steps', '5', '--bf16', 'False', '--lora_target_modules', 'q_proj', 'v_proj')
    """
    flags: list[str] = []
    for name, value in arguments.items():
        if value is None:  # the default
            continue
        values = value if isinstance(value, list | tuple) else [value]
        flags += [f"--{name}", *(json.dumps(item) if isinstance(item, Mapping) else str(item) for item in values)]
    return tuple(flags)


def _name(model: Any) -> str:
    """Return the name of a model; training loads the model itself, in the precision of its options."""
    if not isinstance(model, str | Path):
        raise UserError(f"model must be a bundled name, a folder or a hub id, not a {type(model).__name__}")
    return str(model)


def _names(sources: Any) -> tuple[str, ...]:
    """Return the names of one or several files, folders or data sets."""
    several = (sources,) if isinstance(sources, str | Path) else tuple(sources or ())
    return tuple(map(str, several))


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _check_names(recipe_class: Any, options: Mapping[str, Any]) -> None:
    """Raise an error for options that the recipe does not have."""
    known = set(recipe_class.__dataclass_fields__)
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(
            f"{recipe_class.__name__} has no option {', '.join(unknown)}: use {', '.join(sorted(known))}, or pass "
            "arguments of the trainer in trainer={…}"
        )
