"Every notebook runs, is stored with its outputs, and gives the modules as they are."
import json, re, shutil, subprocess, sys
import nbformat, pytest
import forks
from make_readme import ROOT, readme

notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))

@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    "in a process of its own, as a kernel would be; cells marked `#| slow` keep their stored outputs"
    said = tmp_path / "said"
    assert forks.end(forks.start(forks.notebook, path, said), 900) == 0, said.read_text()[-4000:]

@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_stored_outputs_are_clean(path):
    for cell in nbformat.read(path, 4).cells:
        if re.search(r"^#\|\s*slow", cell.source, re.M) and "eval: false" not in cell.source: assert cell.outputs, "a slow cell without its stored output"
        for out in cell.get("outputs", []):
            assert out.output_type != "error", f"a stored error: {out.get('ename')}"
            assert "application/vnd.jupyter.widget-view+json" not in out.get("data", {}), "a widget without its kernel shows nothing"
            assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(out.get("text", "")) + json.dumps(out.get("data", {}).get("text/plain", ""))), "a path of somebody's machine"

def test_modules_are_what_the_notebooks_export(tmp_path):
    "`nbdev_export` in a copy of the project gives the same files"
    for name in ("nbs", "fashiondiff"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "setup.py"): shutil.copy(ROOT / name, tmp_path)
    for path in (tmp_path / "fashiondiff").glob("[a-z]*.py"): path.unlink()
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    for path in (ROOT / "fashiondiff").glob("*.py"):
        assert (tmp_path / "fashiondiff" / path.name).read_text() == path.read_text(), f"run nbdev_export: {path.name} differs"

def test_readme_is_the_index_notebook():
    text, pictures = readme()
    assert (ROOT / "README.md").read_text(encoding="utf8") == text, "run python tests/make_readme.py"
    for path, data in pictures.items(): assert (ROOT / path).read_bytes() == data

def test_the_german_front_page_keeps_up():
    "the same commands, code, chapters and first picture"
    english, german = ((ROOT / name).read_text(encoding="utf8") for name in ("README.md", "README.de.md"))
    blocks = lambda text: [b for b in re.findall(r"^```(?:sh|python)\n(.*?)```", text, re.M | re.S) if b != "fashiondiff_eval\n"]
    assert blocks(german) == blocks(english)
    picture = lambda text: re.search(r"^!\[[^]]*\]\((.*?)\)", text, re.M)[1]
    assert picture(german) == picture(english)
    chapters = lambda text: re.findall(r"^\| \[`(\d\d_\w+|faq)`\]\(nbs/\1\.ipynb\) \|", text, re.M)
    assert chapters(german) == chapters(english) != []
