"""The prompts of the pipeline: one file each, with its version in the name.

A file holds the system message, a line `---`, and the user message with placeholders. A change of the text is a new
file with the next version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ghosttrace.pipeline.client import Message

VERSIONS = {"score": 1, "compress": 1, "judge": 1}
FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        name: stage that uses it.
        version: increased with every change.
        system: system message.
        user: user message, with placeholders such as `{problem}`.
    """

    name: str
    version: int
    system: str
    user: str

    @property
    def sha256(self) -> str:
        """Hash of both messages."""
        return sha256(f"{self.system}\n---\n{self.user}".encode()).hexdigest()

    def fill(self, values: Mapping[str, object]) -> list[Message]:
        """Return the messages with the placeholders replaced; values are not searched for placeholders."""
        parts = self.user.split("{")
        text = parts[0]
        for part in parts[1:]:
            name, _, rest = part.partition("}")
            text += f"{values[name]}{rest}"
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


def load_prompt(name: str) -> Prompt:
    """Return the current prompt of a stage."""
    version = VERSIONS[name]
    system, _, user = (FOLDER / f"{name}-v{version}.md").read_text(encoding="utf-8").partition("\n---\n")
    return Prompt(name, version, system.strip(), user.strip())
