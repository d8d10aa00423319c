import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(p for p in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MOST_BYTES = 300 * 1024
MOST_LINES = 25  # of a code cell
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: str(path.relative_to(FOLDER)))
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output):
    """The readable parts of an output."""
    bundle = output.get("data", {})
    return [output.get("text", ""), *(v for k, v in bundle.items() if k.startswith("text/"))]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_the_file_is_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size <= MOST_BYTES


def test_it_runs_on_any_python_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_no_cell_is_long(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source


def test_it_was_executed_whole_and_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_its_outputs_are_stored(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_no_cell_failed_or_warned(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


def test_nothing_names_a_place_on_one_machine(notebook):
    for cell in notebook.cells:
        for text in [
            cell.source,
            *(t for output in cell.get("outputs", []) for t in texts(output)),
        ]:
            assert not (found := ABSOLUTE_PATH.search(text)), found


def test_every_notebook_has_its_solutions_apart():
    for path in FOLDER.glob("*.ipynb"):
        assert (FOLDER / "solutions" / path.name).exists()
