r"""Grading: is the answer in a response the right one?

The answer is looked for where the Memento paper looks for it (arXiv 2604.09852): the last `\boxed{}`, else
what follows "Final Answer:", else the last `$…$`. Two whole numbers are compared as such. Anything else is
right if it is the same string after normalising, or if math-verify finds it equivalent. math-verify may
compute without end on an answer such as `10^{10^{10}}`, where its own time limit does not reach it (nor does
that work in threads). So it runs in a process of its own, which ends after 5 seconds of processor time.

What is told apart beyond math-verify: number bases (34_8 is not 34), kinds of bracket ([1,2] is not (1,2)),
numbers side by side (it adds "3 4" up to 7) and numbers down to 1e-100. Not told apart: units and degrees (they
are dropped), upper and lower case of variables, 50 and 50 %, 1/3 and 0.333333.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from subprocess import DEVNULL, PIPE
from threading import Lock

from ghosttrace.bench.benchmark import Grade
from ghosttrace.errors import UserError

TIME_LIMIT_SECONDS = 5.0  # seconds for one comparison by math-verify, as in the paper
MAX_ANSWER_CHARACTERS = 1000  # characters; no answer is longer, and all that follows costs little on such a string

# A box, an escaped character (so that \{ is no brace), or a brace. Two backslashes: some models escape twice.
_TOKEN = re.compile(r"(\\{1,2}(?:boxed|fbox)(?![A-Za-z])\s*)|\\.|[{}]", re.S)
_UNBRACED = re.compile(r"[-+]?[0-9](?:[0-9.,/]*[0-9])?|[A-Z](?![A-Za-z])")
_FINAL = re.compile(r"\bfinal\s+answer[\s*_]*(?:is\b|[:：])[\s*_:]*", re.I)
_FORMULA = re.compile(r"\$+([^$]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.S)

_REWRITES = {
    r"(?i)answer": "",  # math-verify would read only what follows the word
    r"[−–]": "-",
    r"(\\\\)\[[0-9.a-z]*\]": r"\1",  # the spacing of matrix rows
    r"(?<!\\)\\[()\[\]]|\\?\$": "",  # the delimiters of a formula, dollars
    r"(?<!\\)\\!\s*|\\(?:left|right|displaystyle|[Bb]igg?[lr]?)(?![A-Za-z])": "",
    r"(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\s+": " ",
    r"\{,\}": ",",
    r"\\[dtc]frac(?![A-Za-z])": r"\\frac",
    r"\s*\^\s*(?:\{\s*(?:\\circ|°)\s*\}|\\circ(?![A-Za-z])|°)|\s*(?:\\degree(?![A-Za-z])|°)": "",
    r"\\text\{\s*percent\s*\}|\bpercent\b": r"\\%",
    r"^([^,]*\\frac\{[^,]*)\\pm([^,]*)$": r"\1+\2,\1-\2",  # math-verify reads no ± inside a fraction
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
_ENDED = r"(?=\s*(?:$|[).,:;*\]}$\\]|because\b|since\b))"  # so that it is no word, as A and I may be
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
    r"""The answer in a final text, and where it stood.

    Args:
        text: the response after `</think>`.

    Returns:
        The answer as written, stripped, or None; and one of `boxed` (the last balanced `\boxed{…}` or
        `\fbox{…}` that is not empty), `final-answer`, `dollar`, `none`.
    """
    finders = {"boxed": _boxed, "final-answer": _final, "dollar": _dollar}
    return next(((found, where) for where, find in finders.items() if (found := find(text))), (None, "none"))


def integer(answer: str, text: str) -> Grade:
    """Grade a contest integer. What is not plainly written as one is left to math-verify, and the rule says so."""
    return _grade(answer, text, "integer")


def mathematics(answer: str, text: str) -> Grade:
    """Grade any mathematical answer."""
    return _grade(answer, text, "mathematics")


def choice(answer: str, text: str) -> Grade:
    """Grade the letter of a multiple choice, A to J.

    It is the letter in the last box, else the last after "answer is" or "Answer:", else the last in bold, else the
    last capital that stands alone (as in the paper), even where that is a symbol such as a field E. Lower case
    counts in a box or after "answer:". Several letters in one box are wrong.
    """
    gold = answer.strip(" ().").upper()
    if (box := _boxed(text)) is not None and len(box) <= MAX_ANSWER_CHARACTERS:
        inside = _unwrap(_clean(box))
        if found := _BOXED_LETTER.fullmatch(inside):
            return _letter(gold, found, "boxed")
        if _LETTERS.fullmatch(inside):
            return Grade(False, inside, "boxed/choice")
    for where, pattern in (("final-answer", _STATED_LETTER), ("letter", _BOLD), ("letter", _LONE_LETTER)):
        if found := _last(pattern, text):
            return _letter(gold, found, where)
    return Grade(False, None, "none/choice")


GRADERS: dict[str, Callable[[str, str], Grade]] = {"integer": integer, "mathematics": mathematics, "choice": choice}


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007
        pass
    return found


def _letter(gold: str, found: re.Match[str], where: str) -> Grade:
    letter = found[found.lastindex or 0].upper()
    return Grade(letter == gold, letter, f"{where}/choice")


def _boxed(text: str) -> str | None:
    """One pass with a stack of open braces, so that a text of nothing but boxes costs no more than another."""
    best, at, boxed_at = None, -1, -1
    open_braces: list[tuple[int, bool]] = []
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            open_braces.append((token.end(), boxed_at == token.start()))
        elif token[0] == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > at and (inside := text[start : token.start()].strip()):
                best, at = inside, start
        elif token[1]:
            boxed_at = token.end()
            if bare := _UNBRACED.match(text, boxed_at):
                best, at = bare[0], boxed_at
    return best


def _final(text: str) -> str | None:
    found = _last(_FINAL, text)
    if found is None:
        return None
    paragraph = text[found.end() : found.end() + 2 * MAX_ANSWER_CHARACTERS].split("\n\n")[0]
    line = paragraph.partition("\n")[0]
    formula = _last(_FORMULA, line) or _FORMULA.match(paragraph)
    return re.sub(r"^[\s*_]+|[\s*_]+$", "", formula[formula.lastindex or 0] if formula else line)


def _dollar(text: str) -> str | None:
    """Dollars are paired from the end: a price earlier in the text does no harm."""
    parts = re.split(r"(?<!\\)\$+", text)
    return parts[-2].strip() if len(parts) > 2 else None


def _grade(answer: str, text: str, rule: str) -> Grade:
    found, where = extract_answer(text)
    if found is None:
        return Grade(False, None, f"{where}/{rule}")
    if len(found) > MAX_ANSWER_CHARACTERS:
        return Grade(False, found, f"{where}/too-long")
    correct, comparison = _compare(_clean(answer), _clean(found))
    number = _whole(_clean(found))
    return Grade(correct, found if number is None else str(number), f"{where}/{comparison}")


def _compare(gold: str, answer: str) -> tuple[bool, str]:
    """Whether two cleaned answers are equal, and what decided it."""
    if (number := _whole(gold)) is not None and (other := _whole(answer)) is not None:
        return number == other, "integer"
    if _unwrap(gold).replace(" ", "") == _unwrap(answer).replace(" ", ""):
        return True, "string"
    if _differ_in_form(gold, answer):
        return False, "form"
    verdict = _VERIFIER.equal(gold, answer)
    return bool(verdict), "gave-up" if verdict is None else "math-verify"


def _clean(latex: str) -> str:
    """LaTeX without what has no say in its value: delimiters, spacing commands, sizes, degrees, a unit at the end."""
    for pattern, new in _REWRITES.items():
        latex = re.sub(pattern, new, latex)
    latex = latex.strip(" *").removesuffix(".").strip()
    unit = _UNIT.search(latex)
    if unit and not (unit[1] and _NO_UNIT.search(unit[1])):
        latex = latex[: unit.start()].rstrip()
    return latex


def _unwrap(latex: str) -> str:
    return re.sub(_TEXT, r"\1", latex).strip()


def _whole(latex: str) -> int | None:
    """The integer that a cleaned answer plainly is, after any `m + n =`."""
    *left, right = re.split(r"(?<![<>!:\\])=", _unwrap(latex))
    number = _INTEGER.fullmatch(right.strip(" {}"))
    if number is None or re.search(r"[,;]|\b(?:or|and)\b", "=".join(left)):
        return None
    return int(number[1] + re.sub("[ ,]", "", number[2]))


def _differ_in_form(gold: str, answer: str) -> bool:
    """What math-verify would read wrongly or not look at."""
    if not set(_BASE.findall(answer)) <= {*_BASE.findall(gold), "10"} or _SIDE_BY_SIDE.search(f"{gold}\n{answer}"):
        return True
    brackets = {_brackets(gold), _brackets(answer)} - {""}
    return len(brackets) == 2


def _brackets(latex: str) -> str:
    """The pair of brackets around a whole list, such as `[)`; empty where there is none."""
    text = latex.replace("\\{", "{").replace("\\}", "}")
    depth, comma = 0, False
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        comma |= character == "," and depth == 1
        if depth <= 0:
            return text[0] + text[-1] if comma and place == len(text) - 1 else ""
    return ""


def _serve() -> None:
    """Answer each line [limit, gold, answer] with 0 or 1. Run from its source, so that the child imports no torch."""
    import json
    import signal
    import sys

    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Units are off: math-verify takes the d of 5d for one.
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=reading)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process if need be
    print("ready", flush=True)
    for line in sys.stdin:
        limit, *pair = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit)  # the kernel ends the process, in the midst of a power too
        gold, answer = (parse(f"${latex}$", config, "no_fallback", "first_match", 0) for latex in pair)
        # 15 digits, the default, would make any two numbers under 1e-15 equal.
        equal = verify(gold, answer, numeric_precision=100, timeout_seconds=0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(equal), flush=True)


class _Verifier:
    """math-verify in a child process, started when first needed and again after one that was ended."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the child without ending it."""
        self._lock = Lock()
        self._child: subprocess.Popen[str] | None = None

    def equal(self, gold: str, answer: str) -> bool | None:
        """Its verdict, or None if it took more than `TIME_LIMIT_SECONDS` seconds of processor time, or all memory."""
        with self._lock:
            # While it works the child is not kept: one whose question was interrupted still owes that answer.
            child, self._child = self._child, None
            if child is None or child.poll() is not None:
                child = self._start()
            try:
                assert child.stdin and child.stdout
                print(json.dumps([TIME_LIMIT_SECONDS, gold, answer]), file=child.stdin, flush=True)
                reply = child.stdout.readline()
                self._child = child if reply else None
            finally:
                if self._child is None:
                    child.kill()
                    child.communicate()
        return reply == "1\n" if reply else None

    def _start(self) -> "subprocess.Popen[str]":
        program = [sys.executable, "-P", "-c", f"{inspect.getsource(_serve)}\n_serve()"]
        child = subprocess.Popen(program, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
        if child.stdout is None or child.stdout.readline() != "ready\n":
            child.kill()
            raise UserError("grading needs math-verify: pip install 'math-verify[antlr4_13_2]'")
        return child


_VERIFIER = _Verifier()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_VERIFIER.reset)  # a fork must not share the pipes
