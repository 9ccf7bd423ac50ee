"Every notebook runs, is stored with its outputs, and gives the modules as they are."
import json, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from nbdev.export import nb_export
from make_readme import ROOT, readme

notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))

@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path):
    "in a process of its own, as a kernel would be; cells marked `#| slow` keep their stored outputs"
    code = f"from pathlib import Path; from nbdev.test import test_nb; import sys; sys.exit(not test_nb(Path({str(path)!r}), skip_flags=['slow'])[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]

@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_stored_outputs_are_clean(path):
    for cell in nbformat.read(path, 4).cells:
        if re.search(r"^#\|\s*slow", cell.source, re.M) and "eval: false" not in cell.source: assert cell.outputs, "a slow cell without its stored output"
        for out in cell.get("outputs", []):
            assert out.output_type != "error", f"a stored error: {out.get('ename')}"
            assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(out.get("text", "")) + json.dumps(out.get("data", {}).get("text/plain", ""))), "a path of somebody's machine"

@pytest.mark.parametrize("path", [p for p in notebooks if p.stem[:2].isdigit()], ids=lambda p: p.stem)
def test_modules_are_what_the_notebooks_export(path, tmp_path):
    nb_export(path, lib_path=tmp_path)
    for made in tmp_path.glob("*.py"):
        assert made.read_text() == (ROOT / "fashiondiff" / made.name).read_text(), f"run nbdev_export: {made.name} differs"

def test_readme_is_the_index_notebook():
    text, pictures = readme()
    assert (ROOT / "README.md").read_text(encoding="utf8") == text, "run python tests/make_readme.py"
    for path, data in pictures.items(): assert (ROOT / path).read_bytes() == data
