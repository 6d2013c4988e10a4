"""Secrets to plant: digit codes, API keys, names, e-mail addresses, words.

A secret is made of parts, each drawn from a list of its own, and a probe is asked for each part: the
digits of a code (arXiv 2604.09852, section 6.2.2), first and last name, user and domain, the one word.
Draws are uniform and independent of the trace they go into, so that no text can tell them.
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


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _listed(
    "Alice Brenda Carlos Dmitri Elena Farid Grace Hiroshi Ingrid Jamal Keiko Lorenzo Marta Nadia Oscar Priya "
    "Quentin Rosa Samuel Tamara Ursula Viktor Wendy Xavier Yusuf Zofia"
)
LAST_NAMES = _listed(
    "Abbott Becker Castillo Dawson Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Murphy Novak "
    "Okafor Petrov Quinn Rossi Sanders Tanaka Ulrich Vargas Walker Yamamoto Zhang Lindqvist"
)
EMAIL_USERS = _listed(
    "admin billing careers desk editor finance garden helpline info journal kitchen library music news office "
    "press queries rental sales tickets"
)
EMAIL_DOMAINS = tuple(
    f"{name}.example"  # reserved by RFC 2606: no one's address
    for name in _listed("amber birch cedar delta ember falcon granite harbor island jasper lantern meadow")
)
SECRET_WORDS = _listed("apple bridge candle dragon feather guitar hammer island jacket lemon mirror needle")


@dataclass(frozen=True)
class Secret:
    """One draw.

    Attributes:
        text: as it is planted.
        parts: what it is made of, one a target.
        labels: int, the class of each part.
    """

    text: str
    parts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class SecretKind:
    """A kind of secret.

    Attributes:
        name: as in the results.
        targets: one a part; its classes are the list that the part is drawn from.
        separator: what stands between the parts.
        sentence_templates: sentences with `{}` where the secret goes.
    """

    name: str
    targets: tuple[Target, ...]
    separator: str
    sentence_templates: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many different secrets there are."""
        return math.prod(len(target.classes) for target in self.targets)

    @property
    def has_single_part(self) -> bool:
        """The secret is its own class, so that two samples may share it."""
        return len(self.targets) == 1

    @property
    def prompt(self) -> str:
        """What asks for the secret: the beginning of its first sentence, the parts in braces."""
        parts = self.separator.join(f"{{{target.name}}}" for target in self.targets)
        return self.sentence_templates[0].partition("{}")[0] + parts

    def secret(self, labels: tuple[int, ...]) -> Secret:
        """The secret with these parts."""
        parts = tuple(target.classes[label] for target, label in zip(self.targets, labels, strict=True))
        return Secret(self.separator.join(parts), parts, labels)

    def without_words_in(self, text: str) -> "SecretKind":
        """The same kind, without the words that stand in a text; with several parts, unchanged.

        Raises:
            UserError: fewer than two words are left.
        """
        if not self.has_single_part:
            return self
        (target,) = self.targets
        kept = tuple(word for word in target.classes if word not in text)
        if len(kept) < 2:
            raise UserError(
                f"{self.name}: {self.size - len(kept)} of {self.size} secrets stand in the traces already: "
                "give other words, or longer codes"
            )
        return replace(self, targets=(replace(target, classes=kept),))

    def find_in_text(self, text: str) -> set[tuple[int, ...]]:
        """The secrets that stand somewhere in a text, by their labels; no class may begin another one."""
        lists = ["(" + "|".join(map(re.escape, target.classes)) + ")" for target in self.targets]
        pattern = re.compile(f"(?={re.escape(self.separator).join(lists)})")  # looking ahead, so that they may overlap
        return {
            tuple(target.classes.index(part) for target, part in zip(self.targets, match.groups(), strict=True))
            for match in pattern.finditer(text)
        }

    def draw(self, rng: np.random.Generator, n: int, excluded: Set[tuple[int, ...]] = frozenset()) -> list[Secret]:
        """Uniformly random secrets, all different unless they are classes.

        Args:
            rng: the source of randomness.
            n: how many.
            excluded: labels of those that are not to be drawn.

        Raises:
            UserError: there are not so many.
        """
        if not self.has_single_part and n > self.size - len(excluded):
            raise UserError(
                f"{self.name}: {n} samples take as many different secrets that stand in no trace, and there are only "
                f"{self.size - len(excluded)}: take at most so many (--samples), or longer codes"
            )
        sizes = [len(target.classes) for target in self.targets]
        drawn = rng.choice(self.size, n if self.has_single_part else n + len(excluded), replace=self.has_single_part)
        rows = zip(*(row.tolist() for row in np.unravel_index(drawn, sizes)), strict=True)
        return [self.secret(row) for row in rows if row not in excluded][:n]

    def posteriors(self, excluded: Set[tuple[int, ...]] = frozenset()) -> dict[str, np.ndarray]:
        """For each target float[C]: the natural logarithm of each class's share of what can be drawn."""
        found = {}
        for place, target in enumerate(self.targets):
            gone = np.bincount([labels[place] for labels in excluded], minlength=len(target.classes))
            shares = self.size / len(target.classes) - gone
            with np.errstate(divide="ignore"):  # what cannot be drawn has -inf
                found[target.name] = np.log(shares / shares.sum())
        return found


def digit_codes(n: int = 5) -> SecretKind:
    """Codes of n decimal digits.

    Raises:
        UserError: n is less than one.
    """
    if n < 1:
        raise UserError(f"a digit code has at least one digit, not {n}")
    targets = tuple(Target(f"digit-{place}", tuple("0123456789")) for place in range(n))
    return SecretKind(f"digits-{n}", targets, "", PASSCODE_SENTENCES)


def api_keys(n: int = 8) -> SecretKind:
    """API keys of n hexadecimal digits, behind `sk-`.

    Raises:
        UserError: n is less than one.
    """
    if n < 1:
        raise UserError(f"a key has at least one hexadecimal digit, not {n}")
    targets = tuple(Target(f"hex-{place}", tuple("0123456789abcdef")) for place in range(n))
    return SecretKind(f"key-{n}", targets, "", API_KEY_SENTENCES)


def person_names() -> SecretKind:
    """First and last names."""
    return SecretKind("name", (Target("first", FIRST_NAMES), Target("last", LAST_NAMES)), " ", PERSON_SENTENCES)


def email_addresses() -> SecretKind:
    """E-mail addresses, under a top-level domain that is reserved for examples."""
    return SecretKind("email", (Target("user", EMAIL_USERS), Target("domain", EMAIL_DOMAINS)), "@", EMAIL_SENTENCES)


def secret_words(path: str | Path | None = None) -> SecretKind:
    """Words from a list.

    Args:
        path: a text file with one word a line; a built-in list of twelve unless given.

    Raises:
        UserError: the file cannot be read, or holds fewer than two words.
    """
    if path is None:
        return SecretKind("word", (Target("word", SECRET_WORDS),), "", WORD_SENTENCES)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: give a file with one word a line") from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(found) < 2:
        raise UserError(f"{path} holds {len(found)} words: give at least two, one a line")
    return replace(secret_words(), targets=(Target("word", found),))


def secret_kind(spec: str) -> SecretKind:
    """The kind that a command line names: `digits:5`, `key:8`, `name`, `email`, `word`, `word:FILE`.

    Raises:
        UserError: there is no such kind.
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
    raise UserError(f"no kind of secret {spec!r}: give digits:N, key:N, name, email, word or word:FILE")
