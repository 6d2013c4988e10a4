"""Training from Python: `ghosttrace.sft` and `ghosttrace.rl`, with the options of the commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.training.examples import Stage
from ghosttrace.training.result import RLResult, SftResult

MISSING = "pip install -e '.[train]' in the GhostTrace checkout"


def sft(
    model: str,
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
    sources = (data,) if isinstance(data, str | Path) else tuple(data)
    _check_names(Recipe, options)
    recipe = Recipe(model, tuple(map(str, sources)), stage, trainer=trainer_flags(trainer or {}), **options)
    return SftResult.open(train(recipe, _path(out), _path(resume)))


def rl(
    model: str,
    bench: str,
    rewards: str | Sequence[Any] = "correct",
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
    functions = None if isinstance(rewards, str) else list(rewards)
    names = rewards if isinstance(rewards, str) else "correct"  # not used beside functions
    recipe = RLRecipe(model, bench, names, trainer=trainer_flags(trainer or {}), **options)
    return RLResult.open(train(recipe, _path(out), _path(resume), rewards=functions))


def trainer_flags(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return arguments of a trainer as flags of the command line.

    Example:
        >>> trainer_flags({"max_steps": 5, "bf16": False, "lora_target_modules": ["q_proj", "v_proj"]})
        ('--max_steps', '5', '--bf16', 'False', '--lora_target_modules', 'q_proj', 'v_proj')
    """
    flags: list[str] = []
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        flags += [f"--{name}", *map(str, values)]
    return tuple(flags)


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
