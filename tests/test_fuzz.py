"Files from a stranger: opened, or refused in a line that names them; no program in them is ever run."
import gzip, http.server, re, subprocess, sys, threading
import pytest, torch, torchvision.datasets
from PIL import Image
from fashiondiff import data
from fashiondiff.data import Batches
from fashiondiff.commands import file_name, save_images
from fashiondiff.evaluation import EvaluationError, Inception, read_images
from fashiondiff.training import CheckpointError, Trainer, make_accelerator, make_config, read_checkpoint, resume, save_checkpoint
from make_readme import ROOT

def fuzz(cases, seed):
    done = subprocess.run([sys.executable, ROOT / "tests/fuzz.py", str(cases), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    opened, refused = map(int, re.search(r"(\d+) opened, (\d+) refused, 0 wrong", done.stdout).groups())
    assert opened and refused and opened + refused == cases

@pytest.mark.parametrize("cases, seed", [(45, 0), pytest.param(1000, 1, marks=pytest.mark.slow)])
def test_spoiled_files(cases, seed): fuzz(cases, seed)

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "a fresh trainer and a checkpoint after two steps"
    config = make_config("tiny", dataset="sample", base_channels=8, batch_size=10, steps=9, timesteps=10, mixed_precision="no")
    fresh = lambda: Trainer(config, Batches(*data.sample_data(), 10), make_accelerator("cpu"))
    t = fresh(); t.one_step(); t.one_step(); save_checkpoint(t, path := tmp_path_factory.mktemp("good") / "a.pth")
    return fresh, read_checkpoint(path)

@pytest.mark.parametrize("part, value", [("step", "2"), ("step", -1), ("step", None), ("best", []), ("epoch_loss", {}), ("optimizer", None), ("scaler", 3), ("model", [])])
def test_a_value_that_makes_no_sense_is_named(checkpoint, tmp_path, part, value):
    fresh, state = checkpoint; torch.save(state | {part: value}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"a.pth is not a checkpoint of fashiondiff: its {part} makes no sense"): resume(fresh(), tmp_path / "a.pth")

def test_the_settings_of_the_optimiser_are_those_of_the_configuration(checkpoint, tmp_path):
    "whatever a file says they are"
    fresh, state = checkpoint; odd = [dict(g, betas="x", lr=None, weight_decay=[], capturable=7) for g in state["optimizer"]["param_groups"]]
    torch.save(state, tmp_path / "a.pth"); torch.save(state | dict(optimizer=state["optimizer"] | dict(param_groups=odd)), tmp_path / "b.pth")
    a, b = (resume(fresh(), tmp_path / n) for n in ("a.pth", "b.pth"))
    assert a.one_step().loss == b.one_step().loss and torch.equal(a.raw.stem.weight, b.raw.stem.weight)

def test_nothing_in_the_package_reads_pickles_or_unpacks_archives_by_other_means():
    "what the fuzzer does not meet is not there"
    for path in (ROOT / "fashiondiff").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"\bpickle\.|extractall|unpack_archive|tarfile|torch\.load\([^)]*weights_only=False|allow_pickle|(?<![.\w])(eval|exec)\(|os\.system|shell=True", text), path.name
        for call in re.findall(r"torch\.load\(.*?\)|load_state_dict_from_url\(.*?\)", text): assert "weights_only=True" in call, (path.name, call)

@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A server on this machine that gives garbage for every address, and what was asked of it"
    asked = []
    class Garbage(http.server.BaseHTTPRequestHandler):
        def do_GET(self): asked.append(self.path); self.send_response(200); self.end_headers(); self.wfile.write(gzip.compress(b"not what you wanted"))
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Garbage); threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.chdir(tmp_path); monkeypatch.delenv("FASHIONDIFF_DATA", raising=False); monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "cache")); monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    server.shutdown()

def test_a_download_of_something_else_is_refused_by_its_checksum(elsewhere, tmp_path, monkeypatch):
    address, asked = elsewhere
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address]); monkeypatch.setattr(data, "_places", lambda _=None: [data.cache_dir()])
    with pytest.raises(data.DataError, match="downloading it failed"): data.fashion_mnist()
    assert "/train-images-idx3-ubyte.gz" in asked and not list((tmp_path / "cache").rglob("*-ubyte"))

def test_weights_that_are_something_else_are_refused_by_their_checksum(elsewhere, tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    address, asked = elsewhere
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", address + fidelity.URL_INCEPTION_V3.rsplit("/", 1)[1])
    with pytest.raises(EvaluationError, match="invalid hash value"): Inception()
    assert asked and not [p for p in tmp_path.rglob("*.pth")]

def test_an_archive_cannot_name_where_it_is_unpacked(tmp_path, monkeypatch):
    "the name in the header of a .gz is ignored, and so are paths in a checkpoint (fuzz.py has such)"
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "cache")); (tmp_path / "in").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        with gzip.GzipFile("../../../evil", "wb", fileobj=(tmp_path / f"in/{name}.gz").open("wb")) as f: f.write(b"x" * 99)
    with pytest.raises(data.DataError, match="is not the original"): data.fashion_mnist(data=tmp_path / "in")
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"} and not list(tmp_path.parent.rglob("evil"))

@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "..", "a\0b", "C:\\x", "x" * 500, "line\nbreak"])
def test_no_text_becomes_a_path_out_of_its_folder(tmp_path, name):
    save_images(torch.zeros(1, 1, 2, 2), [name], tmp_path / "a/b")
    (made,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert made.parent == tmp_path / "a/b" and made.name == f"{file_name(name)}_000.png" and not re.search(r"[/\\\0\n]", made.name)

@pytest.mark.parametrize("kind", ["EPS", "BMP"])
def test_a_picture_of_another_format_is_not_opened(tmp_path, kind):
    "some formats are handed to other programs"
    Image.new("L", (28, 28)).save(tmp_path / "a.png", kind)
    with pytest.raises(EvaluationError, match="a.png cannot be read as a picture"): read_images(tmp_path, least=1)

def test_a_small_file_of_a_gigantic_picture_is_not_unpacked(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png"); assert (tmp_path / "a.png").stat().st_size < 1e5
    with pytest.raises(EvaluationError, match="a.png cannot be read as a picture .more than 16 million pixels"): read_images(tmp_path, least=1)
