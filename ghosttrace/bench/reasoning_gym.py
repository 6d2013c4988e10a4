"""Problems of the library reasoning-gym (Apache-2.0), which generates them without end and grades their answers.

Its graders give part of the score to wrong answers in the right form; here an answer is correct with the full score
alone. The installed version decides which problems a seed gives, and is recorded with the run.
"""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from ghosttrace.bench.benchmark import Bench, Grade, Problem
from ghosttrace.bench.contests import protocol
from ghosttrace.bench.grading import extract_answer
from ghosttrace.errors import UserError
from ghosttrace.model.prompts import MATHEMATICS_TEMPLATE

DEFAULT_PROBLEMS = 200


def reasoning_gym_bench(data_set: str, limit: int | None, seed: int) -> Bench:
    """Return problems of one data set.

    Args:
        data_set: Name of the data set in reasoning-gym, such as `gsm_symbolic`.
        limit: Number of problems; None means 200.
        seed: Random seed of the problems. The first problems are the same for every number of them.

    Raises:
        UserError: The library is not installed.
    """
    try:
        from reasoning_gym import create_dataset
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install -e '.[reasoning-gym]' in the GhostTrace checkout"
        ) from error
    name, size = data_set.replace("_", "-"), limit or DEFAULT_PROBLEMS
    generated = create_dataset(data_set, size=size, seed=seed)
    entries = {f"{name}-{number}": generated[number] for number in range(size)}

    def grade(problem: Problem, text: str) -> Grade:
        answer, location = extract_answer(text)
        score = 0.0 if answer is None else generated.score_answer(answer, entries[problem.id])
        return Grade(score == 1.0, answer, f"{location}/reasoning-gym")

    return Bench(
        name=name,
        problems=tuple(_problem(id_, entry) for id_, entry in entries.items()),
        protocol=protocol(size),
        grade=grade,
        origin=f"reasoning-gym {version('reasoning-gym')}, seed {seed}",
        template=MATHEMATICS_TEMPLATE,
    )


def _problem(id_: str, entry: dict[str, Any]) -> Problem:
    return Problem(id_, MATHEMATICS_TEMPLATE.fill(entry["question"]), str(entry["answer"]))


REASONING_GYM_BENCHES: dict[str, Callable[[int | None, int], Bench]] = {
    data_set.replace("_", "-"): partial(reasoning_gym_bench, data_set)
    for data_set in ("gsm_symbolic", "leg_counting", "calendar_arithmetic")
}
