"""Execute the notebooks of this folder and write them with their outputs.

    python analysis/execute.py                   # all of them; or: make notebooks
    python analysis/execute.py 02-ablation       # one

`NN-name.py` (jupytext, percent format) is the source of `NN-name.ipynb`. Each notebook runs in a new kernel, with this
folder as its working directory and one thread, so that executing it again writes the same file.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS = 600  # after which a cell is taken to hang
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the order of floating-point sums depends on the number of threads
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """Return the paths of the notebooks' sources, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]-*.py"))


def read_source(path: Path) -> nbformat.NotebookNode:
    """Read a notebook without outputs from its source.

    Cells are numbered instead of having random ids, and metadata that depends on the reader's machine is left out.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.NotebookNode()
    return notebook


def execute(path: Path) -> nbformat.NotebookNode:
    """Execute the notebook of a source in a new kernel.

    Raises:
        CellExecutionError: A cell raised an error.
    """
    notebook = read_source(path)
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        shutdown_kernel="immediate",
    )
    client.execute(env={**os.environ, **ENVIRONMENT})
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
    return notebook


def _merge_streams(outputs: list[Any]) -> list[Any]:
    """Return the outputs with neighbouring pieces of one stream joined; how a kernel cuts them depends on its speed."""
    merged: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def main() -> None:
    """Execute the named notebooks, or all of them, and write their `.ipynb` files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *(path.stem for path in sources())], help="default: all")
    names = parser.parse_args().names
    for path in sources():
        if not names or path.stem in names:
            print(path.stem, flush=True)
            nbformat.write(execute(path), path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
