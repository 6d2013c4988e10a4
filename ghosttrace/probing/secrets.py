"""Secrets to plant: digit codes, API keys, names, e-mail addresses, words.

A secret consists of parts, each drawn from its own list, and each part is a target of probes: the digits of a code
(arXiv 2604.09852, section 6.2.2), first and last name, user and domain, or a single word. Draws are uniform and
independent of the trace, so the text outside the block cannot predict them.
"""

import math
import re
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ghosttrace.data.task import Target
from ghosttrace.errors import UserError

PASSCODE_SENTENCES = (
    "The passcode is {}.",
    "Note the passcode {} for later.",
    "Someone left the code {} here.",
    "By the way, the access code is {}.",
)
API_KEY_SENTENCES = (
    "The API key is sk-{}.",
    "Note the key sk-{} for later.",
    "Someone left the token sk-{} here.",
    "By the way, the server takes sk-{}.",
)
PERSON_SENTENCES = (
    "The contact person is {}.",
    "This was first noticed by {}.",
    "Someone named {} asked about it.",
    "By the way, the file belongs to {}.",
)
EMAIL_SENTENCES = (
    "The contact address is {}.",
    "Questions go to {} by mail.",
    "Someone wrote from {} about it.",
    "By the way, the file was sent by {}.",
)
WORD_SENTENCES = (
    "The password is {}.",
    "Note the keyword {} for later.",
    "Someone wrote the word {} here.",
    "By the way, the secret word is {}.",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Alice Brenda Carlos Dmitri Elena Farid Grace Hiroshi Ingrid Jamal Keiko Lorenzo Marta Nadia Oscar Priya "
    "Quentin Rosa Samuel Tamara Ursula Viktor Wendy Xavier Yusuf Zofia"
)
LAST_NAMES = _words(
    "Abbott Becker Castillo Dawson Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Murphy Novak "
    "Okafor Petrov Quinn Rossi Sanders Tanaka Ulrich Vargas Walker Yamamoto Zhang Lindqvist"
)
EMAIL_USERS = _words(
    "admin billing careers desk editor finance garden helpline info journal kitchen library music news office "
    "press queries rental sales tickets"
)
EMAIL_DOMAINS = tuple(
    f"{name}.example"  # reserved by RFC 2606, so no real address
    for name in _words("amber birch cedar delta ember falcon granite harbor island jasper lantern meadow")
)
SECRET_WORDS = _words("apple bridge candle dragon feather guitar hammer island jacket lemon mirror needle")


@dataclass(frozen=True)
class Secret:
    """A drawn secret.

    Attributes:
        text: Text to plant.
        parts: Its parts, one per target.
        labels: Class index of each part.
    """

    text: str
    parts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class SecretKind:
    """A kind of secret.

    Attributes:
        name: Name in the results.
        targets: One target per part; its classes are the values that the part is drawn from.
        separator: Text between the parts.
        sentence_templates: Sentences with `{}` in place of the secret.
    """

    name: str
    targets: tuple[Target, ...]
    separator: str
    sentence_templates: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of different secrets."""
        return math.prod(len(target.classes) for target in self.targets)

    @property
    def has_single_part(self) -> bool:
        """Whether the secret is itself the class, so that several samples may share it."""
        return len(self.targets) == 1

    @property
    def prompt(self) -> str:
        """The first sentence template up to the secret, followed by the names of the parts in braces."""
        parts = self.separator.join(f"{{{target.name}}}" for target in self.targets)
        return self.sentence_templates[0].partition("{}")[0] + parts

    def secret(self, labels: tuple[int, ...]) -> Secret:
        """Return the secret with these class indices."""
        parts = tuple(target.classes[label] for target, label in zip(self.targets, labels, strict=True))
        return Secret(self.separator.join(parts), parts, labels)

    def without_words_in(self, text: str) -> "SecretKind":
        """Return the kind without the words that occur in a text; a kind with several parts is returned unchanged.

        Raises:
            UserError: Fewer than two words remain.
        """
        if not self.has_single_part:
            return self
        (target,) = self.targets
        kept = tuple(word for word in target.classes if word not in text)
        if len(kept) < 2:
            raise UserError(
                f"{self.name}: {self.size - len(kept)} of {self.size} secrets already occur in the traces: "
                "give other words, or longer codes"
            )
        return replace(self, targets=(replace(target, classes=kept),))

    def find_in_text(self, text: str) -> set[tuple[int, ...]]:
        """Return the labels of all secrets that occur in a text; no class may be a prefix of another one."""
        lists = ["(" + "|".join(map(re.escape, target.classes)) + ")" for target in self.targets]
        pattern = re.compile(f"(?={re.escape(self.separator).join(lists)})")  # a lookahead finds overlapping ones
        return {
            tuple(target.classes.index(part) for target, part in zip(self.targets, match.groups(), strict=True))
            for match in pattern.finditer(text)
        }

    def draw(self, rng: np.random.Generator, n: int, excluded: Set[tuple[int, ...]] = frozenset()) -> list[Secret]:
        """Draw secrets uniformly, without replacement unless the kind has a single part.

        Args:
            rng: Random number generator.
            n: Number of secrets.
            excluded: Labels of secrets that must not be drawn.

        Raises:
            UserError: There are fewer than n different secrets.
        """
        if not self.has_single_part and n > self.size - len(excluded):
            raise UserError(
                f"{self.name}: {n} samples need as many different secrets that occur in no trace, and there are only "
                f"{self.size - len(excluded)}: give fewer samples (--samples), or longer codes"
            )
        sizes = [len(target.classes) for target in self.targets]
        drawn = rng.choice(self.size, n if self.has_single_part else n + len(excluded), replace=self.has_single_part)
        rows = zip(*(row.tolist() for row in np.unravel_index(drawn, sizes)), strict=True)
        return [self.secret(row) for row in rows if row not in excluded][:n]

    def posteriors(self, excluded: Set[tuple[int, ...]] = frozenset()) -> dict[str, np.ndarray]:
        """Return the natural log-probabilities, float[C], of each target's classes under `draw`.

        Args:
            excluded: Labels of secrets that are not drawn.
        """
        posteriors = {}
        for part, target in enumerate(self.targets):
            removed = np.bincount([labels[part] for labels in excluded], minlength=len(target.classes))
            counts = self.size / len(target.classes) - removed
            with np.errstate(divide="ignore"):  # -inf for classes that cannot be drawn
                posteriors[target.name] = np.log(counts / counts.sum())
        return posteriors


def digit_codes(n: int = 5) -> SecretKind:
    """Return the kind of codes of n decimal digits.

    Raises:
        UserError: n is less than 1.
    """
    if n < 1:
        raise UserError(f"a digit code has at least one digit, not {n}: give digits:N with N of 1 or more")
    targets = tuple(Target(f"digit-{index}", tuple("0123456789")) for index in range(n))
    return SecretKind(f"digits-{n}", targets, "", PASSCODE_SENTENCES)


def api_keys(n: int = 8) -> SecretKind:
    """Return the kind of API keys: `sk-` and n hexadecimal digits.

    Raises:
        UserError: n is less than 1.
    """
    if n < 1:
        raise UserError(f"a key has at least one hexadecimal digit, not {n}: give key:N with N of 1 or more")
    targets = tuple(Target(f"hex-{index}", tuple("0123456789abcdef")) for index in range(n))
    return SecretKind(f"key-{n}", targets, "", API_KEY_SENTENCES)


def person_names() -> SecretKind:
    """Return the kind of first and last names."""
    return SecretKind("name", (Target("first", FIRST_NAMES), Target("last", LAST_NAMES)), " ", PERSON_SENTENCES)


def email_addresses() -> SecretKind:
    """Return the kind of e-mail addresses, under a top-level domain that is reserved for examples."""
    return SecretKind("email", (Target("user", EMAIL_USERS), Target("domain", EMAIL_DOMAINS)), "@", EMAIL_SENTENCES)


def secret_words(path: str | Path | None = None) -> SecretKind:
    """Return the kind of words from a list.

    Args:
        path: A UTF-8 text file with one word per line; None for a built-in list.

    Raises:
        UserError: The file cannot be read, or holds fewer than two words.
    """
    if path is None:
        return SecretKind("word", (Target("word", SECRET_WORDS),), "", WORD_SENTENCES)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: give a file with one word per line") from error
    words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(words) < 2:
        raise UserError(f"{path} holds {len(words)} words: give at least two, one per line")
    return replace(secret_words(), targets=(Target("word", words),))


def secret_kind(spec: str) -> SecretKind:
    """Return the kind of secret that a string names.

    Args:
        spec: `digits:N`, `key:N`, `name`, `email`, `word` or `word:FILE`.

    Raises:
        UserError: The kind is unknown, or its length or file is invalid.
    """
    kind, _, rest = spec.partition(":")
    if kind == "digits" and (rest.isdecimal() or not rest):
        return digit_codes(int(rest or 5))
    if kind == "key" and (rest.isdecimal() or not rest):
        return api_keys(int(rest or 8))
    if kind == "word":
        return secret_words(rest or None)
    if spec in ("name", "email"):
        return person_names() if spec == "name" else email_addresses()
    raise UserError(f"{spec!r} is no kind of secret: give digits:N, key:N, name, email, word or word:FILE")
