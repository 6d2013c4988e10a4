"""Commands, examples, tables and links of README.md and docs/."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from experiments.tables import MARKED, TABLES, pages, with_tables

ROOT = Path(__file__).parent.parent
OTHER_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "analysis" / "README.md"]
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in [*pages(), *OTHER_PAGES]}
README = PAGES["README.md"]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
AUDIT_LEAK = 10  # the exit code that docs/audit.md gives for its command
MEASURED = re.compile(r"(?<![\w.+-])[-+±]?\d+(?:\.\d+)?(?: ?%|x\b| points\b| bits\b| nats\b| ms\b)")
ALLOWED = {
    "95 %",  # the level of every interval
    "80 %",  # the power of a plan
    "5 %",  # the level of every test
    "2.5 %",  # one tail of it
    "1 %",  # a false-positive rate of the membership attack
    "90 %",  # what a set of sites in patching must reproduce
    "0.1 bits",  # the default of --max-leak-bits
    "5 points",  # the effect of an example, and of a table
    "66.1 %",  # from the paper, section 6.2.1
    "50.8 %",  # the same
    "1.75x",  # the same, section 6.5
}


def fences(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell_commands(text: str) -> list[str]:
    """Return the commands of the bash blocks of a page, without comments."""
    lines = [line.split("#")[0].strip() for block in fences(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def task_commands() -> list[str]:
    """Return the commands in the table of tasks of the README."""
    return re.findall(r"^\| [^|]+ \| `(ghosttrace [^`]+)` \|", README, flags=re.MULTILINE)


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that has the checkout's examples and experiments."""
    for name in ("examples", "experiments"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return subprocess.run(shlex.split(command), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_the_readme_begins_with_two_commands() -> None:
    assert shell_commands(README)[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_up_to_date(name: str) -> None:
    assert with_tables(PAGES[name]) == PAGES[name], "run `make tables`"


@pytest.mark.parametrize("name", PAGES)
def test_table_marks_are_paired(name: str) -> None:
    text = PAGES[name]
    assert text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(MARKED.findall(text))


def test_every_table_is_used() -> None:
    assert {name for text in PAGES.values() for _, name, _ in MARKED.findall(text)} == set(TABLES)


def test_an_outdated_table_is_noticed() -> None:
    changed = PAGES["docs/bits.md"].replace("3.38", "3.39")
    assert changed != PAGES["docs/bits.md"] and with_tables(changed) != changed


@pytest.mark.parametrize("name", PAGES)
def test_measured_numbers_stand_in_generated_tables(name: str) -> None:
    prose = re.sub(r"```.*?```", "", MARKED.sub("", PAGES[name]), flags=re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    assert {found.strip() for found in MEASURED.findall(prose)} <= ALLOWED


@pytest.mark.parametrize("name", PAGES)
def test_named_files_and_headings_exist(name: str) -> None:
    folder, text = (ROOT / name).parent, PAGES[name]
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, heading = target.partition("#")
        page = folder / path if path else ROOT / name
        assert page.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in anchors, target
    for path in re.findall(r"[` ]((?:ghosttrace|tests|experiments|benchmarks|examples|figures)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_nothing_installs_another_project_of_the_same_name() -> None:
    """`ghosttrace` on the Python package index is another project."""
    texts = list(PAGES.values())
    texts += [path.read_text() for folder in ("ghosttrace", "examples") for path in (ROOT / folder).rglob("*.*y*ml")]
    texts += [path.read_text() for path in (ROOT / "ghosttrace").rglob("*.py")]
    assert not [text for text in texts if re.search(r"pip install[^\n`]*['\" ]ghosttrace(?!-kv)", text)]


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in shell_commands(README) if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    """Their recipes are not run, because one of them runs these tests."""
    planned = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert ("ghosttrace ablate" if "demo" in command else "pytest") in planned.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if name != "README.md" and shell_commands(text)])
def test_commands_of_a_page_work_as_typed(name: str, tmp_path: Path) -> None:
    for command in shell_commands(PAGES[name]):
        done = run_in(tmp_path, command)
        expected = AUDIT_LEAK if command.startswith("ghosttrace audit") else 0
        assert done.returncode == expected, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command


def test_commands_of_the_task_table_are_on_the_pages() -> None:
    """So they are run as well, after what they need."""
    on_pages = {command for name, text in PAGES.items() if name != "README.md" for command in shell_commands(text)}
    run = [command for command in task_commands() if "smollm2" not in command]  # needs a download, and minutes
    assert len(run) == 7 and set(run) <= on_pages


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if fences(text, "python")])
def test_python_examples_run_and_print_what_is_shown(name: str, tmp_path: Path) -> None:
    script = "\n".join(fences(PAGES[name], "python"))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    shown = fences(PAGES[name], "text")
    if shown:
        assert done.stdout == "".join(shown)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for text in PAGES.values() for c in fences(text, "console")])
def test_servers_start_as_typed_and_answer(command: str) -> None:
    server = subprocess.Popen(shlex.split(command), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(120):
            assert server.poll() is None, server.stderr and server.stderr.read()
            try:
                with urlopen("http://127.0.0.1:8000/v1/models", timeout=5) as answer:
                    assert json.load(answer)["data"][0]["id"] == "toy-open"
                    break
            except URLError:
                time.sleep(1)
        else:
            pytest.fail("the server does not answer")
    finally:
        server.terminate()
        server.wait(30)
