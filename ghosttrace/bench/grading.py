r"""Grade responses: extract the answer and compare it with the correct one.

As in the Memento paper (arXiv 2604.09852), the answer is the content of the last `\boxed{}`, else the text after
"Final Answer:", else the last `$…$`. Two whole numbers are compared as numbers. Any other answer is correct if it is
the same string after normalization or if math-verify finds it equivalent (`ghosttrace.bench.verifier`).

Unlike math-verify, this module distinguishes number bases (34_8 is not 34), kinds of brackets ([1,2] is not (1,2)),
adjacent numbers (math-verify adds "3 4" up to 7) and numbers down to 1e-100. It does not distinguish units and degrees
(they are removed), upper and lower case of variables, 50 and 50 %, or 1/3 and 0.333333.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from ghosttrace.bench.benchmark import Grade
from ghosttrace.bench.verifier import VERIFIER

MAX_ANSWER_CHARACTERS = 1000  # longer strings are no answers, and would make the regular expressions slow
MAX_REQUESTS = 200  # to math-verify, of 1 to 50 ms each, to group the answers to one problem
_MATHEMATICAL = {"integer", "string", "form", "math-verify"}  # comparisons of `_compare` that came to a decision

# Matches a box, an escaped character (\{ is not a brace) or a brace. Some models escape the backslash of a box.
_TOKEN = re.compile(r"(\\{1,2}(?:boxed|fbox)(?![A-Za-z])\s*)|\\.|[{}]", re.S)
_UNBRACED = re.compile(r"[-+]?[0-9](?:[0-9.,/]*[0-9])?|[A-Z](?![A-Za-z])")
_FINAL = re.compile(r"\bfinal\s+answer[\s*_]*(?:is\b|[:：])[\s*_:]*", re.I)
_FORMULA = re.compile(r"\$+([^$]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.S)

_REWRITES = {
    r"(?i)answer": "",  # math-verify would parse only the text after this word
    r"[−–]": "-",
    r"(\\\\)\[[0-9.a-z]*\]": r"\1",  # spacing between matrix rows
    r"(?<!\\)\\[()\[\]]|\\?\$": "",  # delimiters of a formula, dollar signs
    r"(?<!\\)\\!\s*|\\(?:left|right|displaystyle|[Bb]igg?[lr]?)(?![A-Za-z])": "",
    r"(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\s+": " ",
    r"\{,\}": ",",
    r"\\[dtc]frac(?![A-Za-z])": r"\\frac",
    r"\s*\^\s*(?:\{\s*(?:\\circ|°)\s*\}|\\circ(?![A-Za-z])|°)|\s*(?:\\degree(?![A-Za-z])|°)": "",
    r"\\text\{\s*percent\s*\}|\bpercent\b": r"\\%",
    r"^([^,]*\\frac\{[^,]*)\\pm([^,]*)$": r"\1+\2,\1-\2",  # math-verify cannot parse ± inside a fraction
}
_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm|sf)|mbox|bm|boldsymbol|underline)\s*\{([^{}]*)\}"
_NO_UNIT = re.compile(
    r"[^A-Za-z ./-]|\b(?:or|and|not|to|than|mod|base|squared|cubed|dozen|hundred|thousand|[mbt]r?illion|pi|[eiknx-z]|"
    r"(?i:[ap]\.?m))\b"
)
_UNIT = re.compile(
    rf"(?<=[0-9}})])\s*(?:{_TEXT}|(?<= )(?:(?:square|cubic) )?(?:units?|degrees?|ways|dollars|cents|feet|ft|inches|"
    r"miles|meters|minutes|hours|seconds|days|years|[cmk]m|kg))(?:\s*\^\s*\{?[23]\}?)?$"
)
_INTEGER = re.compile(r"([-+]?) ?([1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+|[0-9]+)(?:\.0*)?")
_BASE = re.compile(r"[0-9)] ?_ ?\{? ?([0-9]+)")
_SIDE_BY_SIDE = re.compile(r"[0-9] +[0-9]|[0-9]\} ?[0-9]{2}|(?:(?<![_^])[0-9]|[0-9]\)) ?\([0-9.]+\)")

_OPEN = r"(?:[\s(\[{*_$]|\\\(|\\(?:text|math)[a-z]*|\b(?:option|choice)\b)*"
_ENDED = r"(?=\s*(?:$|[).,:;*\]}$\\]|because\b|since\b))"  # otherwise the letter is a word, such as A or I
_STATED_LETTER = re.compile(
    rf"(?i:\b(?:answer|option|choice)\b[\s*_]*(?:is\b|[:：])){_OPEN}([B-HJ](?![\w'’-])|[AI]{_ENDED})"
    rf"|(?i:\banswer[\s*_]*[:：]){_OPEN}([a-j]){_ENDED}",
    re.M,
)
_BOLD = re.compile(r"\*\*\s*(?:[Oo]ption |[Cc]hoice )?\(?([A-J])\s*(?:[).:]|\*\*)")
_LONE_LETTER = re.compile(r"(?<![\w\\'’-])([B-HJ]|[AI](?!\s+[a-z]))(?![\w'’-])")
_BOXED_LETTER = re.compile(r"[\s({\[]*([A-Ja-j])[\s)}\].:]*|\(?([A-J])[).:](?!\s*(?:and|or|[,&/])).*", re.S)
_LETTERS = re.compile(r"\(?[A-J]\)?(?:\s*(?:,|and|or|&|/)\s*\(?[A-J]\)?)+")


def extract_answer(text: str) -> tuple[str | None, str]:
    r"""Extract the answer from the final text of a response.

    Args:
        text: The response after `</think>`.

    Returns:
        The stripped answer or None, and its location: `boxed` (the last non-empty balanced `\boxed{…}` or `\fbox{…}`),
        `final-answer`, `dollar` or `none`.
    """
    finders = {"boxed": _boxed, "final-answer": _final, "dollar": _dollar}
    return next(((answer, location) for location, find in finders.items() if (answer := find(text))), (None, "none"))


def integer(answer: str, text: str) -> Grade:
    """Grade a response to a problem with an integer answer; math-verify compares what is not a plain integer."""
    return _grade(answer, text, "integer")


def mathematics(answer: str, text: str) -> Grade:
    """Grade a response to a problem with any mathematical expression as its answer."""
    return _grade(answer, text, "mathematics")


def choice(answer: str, text: str) -> Grade:
    """Grade a response to a multiple-choice problem with the options A to J.

    The chosen letter is the letter in the last box, else the last one after "answer is" or "Answer:", else the last one
    in bold, else the last isolated capital letter (as in the paper), even if that is a symbol such as a field E. Lower
    case is accepted in a box and after "answer:". Several letters in one box are incorrect.
    """
    gold = answer.strip(" ().").upper()
    if (box := _boxed(text)) is not None and len(box) <= MAX_ANSWER_CHARACTERS:
        content = _unwrap(_clean(box))
        if match := _BOXED_LETTER.fullmatch(content):
            return _grade_letter(gold, match, "boxed")
        if _LETTERS.fullmatch(content):
            return Grade(False, content, "boxed/choice")
    for location, pattern in (("final-answer", _STATED_LETTER), ("letter", _BOLD), ("letter", _LONE_LETTER)):
        if match := _last_match(pattern, text):
            return _grade_letter(gold, match, location)
    return Grade(False, None, "none/choice")


GRADERS: dict[str, Callable[[str, str], Grade]] = {"integer": integer, "mathematics": mathematics, "choice": choice}
"""Grading rules by name: functions of (correct answer, response after `</think>`) to `Grade`."""


def group_equal_answers(answers: Sequence[str], rules: Sequence[str]) -> list[str]:
    """Group the answers to one problem that its grader would take for the same answer.

    Mathematical answers are equal if they are the same number or the same text after normalization, or if the grader
    accepts one where the other is the correct answer. The most frequent answers come first; each is compared with one
    answer of every group so far, unless both are numbers that clearly differ. Answers are taken for different where a
    comparison exceeds its time limit, and after `MAX_REQUESTS` requests. An answer that was graded by another rule, was
    too long, or exceeded the time limit when it was graded is equal to the same string only.

    Args:
        answers: Extracted answers (`Grade.extracted`).
        rules: Grading rule of each answer (`Grade.rule`).

    Returns:
        For each answer, the answer that represents its group.

    Example:
        >>> group_equal_answers(["2", "4/2", "2 "], ["boxed/integer", "boxed/math-verify", "digits/exact"])
        ['2', '2', '2 ']
    """
    other = {a for a, rule in zip(answers, rules, strict=True) if rule.rpartition("/")[2] not in _MATHEMATICAL}
    group_of, group_of_form = {answer: answer for answer in other}, dict[int | str, str]()
    values: dict[str, float] = {}  # of the answer that represents each group
    requests_left = MAX_REQUESTS
    for answer, _ in Counter(answer for answer in answers if answer not in other).most_common():
        form = _normal_form(answer)
        if form not in group_of_form:
            group_of_form[form], requests = _find_group(answer, form, values, requests_left)
            requests_left -= requests
        group_of[answer] = group_of_form[form]
    return [group_of[answer] for answer in answers]


def _find_group(answer: str, form: int | str, values: dict[str, float], requests_left: int) -> tuple[str, int]:
    """Find the group of an answer that has a new normal form, and add a new group to `values`.

    Returns:
        The answer that represents the group, and the number of requests to math-verify.
    """
    requests = int(isinstance(form, str))
    value = None if requests > requests_left else _value(answer, form)
    if value is None:
        return answer, requests
    for group, other in values.items():
        if not _may_be_equal(value, other) or requests == requests_left:
            continue
        requests += 1
        equal, comparison = _compare(_clean(group), _clean(answer))
        if equal:
            return group, requests
        if comparison == "gave-up":
            break
    values[answer] = value
    return answer, requests


def _normal_form(answer: str) -> int | str:
    """Return the whole number that an answer is, or else its text after normalization."""
    cleaned = _clean(answer)
    number = _parse_integer(cleaned)
    return _unwrap(cleaned).replace(" ", "") if number is None else number


def _value(answer: str, form: int | str) -> float | None:
    """Return the value of an answer, nan if it is not a real number, or None if math-verify exceeds its time limit."""
    if isinstance(form, str):
        return VERIFIER.value(_clean(answer))
    return float(form) if abs(form) < 2**1000 else math.inf


def _may_be_equal(value: float, other: float) -> bool:
    """Return False for two numbers that differ by more than math-verify rounds away."""
    return math.isnan(value) or math.isnan(other) or math.isclose(value, other, rel_tol=1e-5, abs_tol=1e-5)


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def _grade_letter(gold: str, match: re.Match[str], location: str) -> Grade:
    letter = match[match.lastindex or 0].upper()
    return Grade(letter == gold, letter, f"{location}/choice")


def _boxed(text: str) -> str | None:
    """Return the content of the last non-empty box, in one pass, so that many boxes cost linear time."""
    content, content_start, box_end = None, -1, -1  # box_end: end of the last \boxed command
    open_braces: list[tuple[int, bool]] = []
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            open_braces.append((token.end(), box_end == token.start()))
        elif token[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > content_start and (inside := text[start : token.start()].strip()):
                content, content_start = inside, start
        elif token[1]:
            box_end = token.end()
            if unbraced := _UNBRACED.match(text, box_end):
                content, content_start = unbraced[0], box_end
    return content


def _final(text: str) -> str | None:
    match = _last_match(_FINAL, text)
    if match is None:
        return None
    paragraph = text[match.end() : match.end() + 2 * MAX_ANSWER_CHARACTERS].split("\n\n")[0]
    line = paragraph.partition("\n")[0]
    formula = _last_match(_FORMULA, line) or _FORMULA.match(paragraph)
    return re.sub(r"^[\s*_]+|[\s*_]+$", "", formula[formula.lastindex or 0] if formula else line)


def _dollar(text: str) -> str | None:
    """Return the last formula in dollar signs, paired from the end because earlier dollar signs may be prices."""
    parts = re.split(r"(?<!\\)\$+", text)
    return parts[-2].strip() if len(parts) > 2 else None


def _grade(answer: str, text: str, rule: str) -> Grade:
    extracted, location = extract_answer(text)
    if extracted is None:
        return Grade(False, None, f"{location}/{rule}")
    if len(extracted) > MAX_ANSWER_CHARACTERS:
        return Grade(False, extracted, f"{location}/too-long")
    correct, comparison = _compare(_clean(answer), _clean(extracted))
    number = _parse_integer(_clean(extracted))
    return Grade(correct, extracted if number is None else str(number), f"{location}/{comparison}")


def _compare(gold: str, answer: str) -> tuple[bool, str]:
    """Return whether two cleaned answers are equal, and the comparison that decided it."""
    if (gold_number := _parse_integer(gold)) is not None and (number := _parse_integer(answer)) is not None:
        return gold_number == number, "integer"
    if _unwrap(gold).replace(" ", "") == _unwrap(answer).replace(" ", ""):
        return True, "string"
    if _differ_in_form(gold, answer):
        return False, "form"
    verdict = VERIFIER.equal(gold, answer)
    return bool(verdict), "gave-up" if verdict is None else "math-verify"


def _clean(latex: str) -> str:
    """Remove LaTeX that does not affect the value: delimiters, spacing, sizes, degrees, and a unit at the end."""
    for pattern, replacement in _REWRITES.items():
        latex = re.sub(pattern, replacement, latex)
    latex = latex.strip(" *").removesuffix(".").strip()
    unit = _UNIT.search(latex)
    if unit and not (unit[1] and _NO_UNIT.search(unit[1])):
        latex = latex[: unit.start()].rstrip()
    return latex


def _unwrap(latex: str) -> str:
    return re.sub(_TEXT, r"\1", latex).strip()


def _parse_integer(latex: str) -> int | None:
    """Return the integer of a cleaned answer such as `7` or `m + n = 7`, or None if it is not a plain integer."""
    *left, right = re.split(r"(?<![<>!:\\])=", _unwrap(latex))
    number = _INTEGER.fullmatch(right.strip(" {}"))
    if number is None or re.search(r"[,;]|\b(?:or|and)\b", "=".join(left)):
        return None
    return int(number[1] + re.sub("[ ,]", "", number[2]))


def _differ_in_form(gold: str, answer: str) -> bool:
    """Return whether two answers differ in a way that math-verify ignores or misreads."""
    if not set(_BASE.findall(answer)) <= {*_BASE.findall(gold), "10"} or _SIDE_BY_SIDE.search(f"{gold}\n{answer}"):
        return True
    return len({_brackets(gold), _brackets(answer)} - {""}) == 2


def _brackets(latex: str) -> str:
    """Return the outer brackets of a comma-separated list, such as `[)` for `[1,2)`; empty if it is no such list."""
    text, depth, comma = latex.replace("\\{", "{").replace("\\}", "}"), 0, False
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        comma |= character == "," and depth == 1
        if depth <= 0:
            return text[0] + text[-1] if comma and index == len(text) - 1 else ""
    return ""
