"""docs/errors.md: each command fails with exit code 2 and the message that the page shows."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.commands import ghosttrace
from test_documents import ROOT, fences

CHECKPOINTS = ROOT / "ghosttrace" / "checkpoints"
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "errors.md").read_text(), flags=re.MULTILINE)[1:]
CAUSES = {section.splitlines()[0]: section for section in SECTIONS if fences(section, "sh")}


def test_the_page_has_the_common_errors() -> None:
    assert len(CAUSES) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("title", CAUSES)
def test_a_command_fails_with_the_message_on_the_page(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands,), (message,) = fences(CAUSES[title], "sh"), fences(CAUSES[title], "text")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "runs").mkdir()
    own = shutil.copytree(CHECKPOINTS / "toy-mixed", tmp_path / "my-model")
    config = json.loads((own / "config.json").read_text())
    del config["ghosttrace"]["policy"]
    (own / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    *before, last = (ghosttrace(*shlex.split(command)[1:]) for command in commands.splitlines())
    assert [done.returncode for done in before] == [0] * len(before)
    assert last.returncode == 2 and last.stderr.endswith(message)
