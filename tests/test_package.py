"What a person who installs the package gets."
import os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
import pytest, torch
from fashiondiff.evaluation import class_accuracy, load_classifier
from fashiondiff.guidance import guide
from fashiondiff.sampling import noise_like, sample
from fashiondiff.training import load_model, shipped_models
from make_readme import ROOT

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("wheel"); src = tmp_path / "src"
    for name in subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        (src / name).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / name, src / name)
    done = subprocess.run([sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", tmp_path, src], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    return wheel

def test_the_wheel_holds_weights_and_sample_data_and_is_small(wheel):
    assert wheel.stat().st_size < 20e6
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fashiondiff/assets/classifier.safetensors", "fashiondiff/assets/fashion_mnist_sample.safetensors"} <= set(names)
    assert any(n.startswith("fashiondiff/weights/") for n in names)
    entry = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert all(f"fashiondiff_{c}" in entry for c in ("train", "sample", "eval"))

def test_importing_the_front_door_is_quick_and_complete():
    code = "import fashiondiff, sys; assert 'torch' not in sys.modules; from fashiondiff import load_model, sample, guide, show_images; print(fashiondiff.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import fashiondiff
    assert {"sample", "guide", "load_model", "make_schedule", "UNet"} <= set(dir(fashiondiff))
    with pytest.raises(AttributeError): fashiondiff.no_such_thing

def test_imports_take_at_most_a_second_beyond_torch_and_ask_nobody():
    "in processor time, so that a busy machine does not matter; no socket is opened"
    code = "import torch, socket, time; socket.socket.connect = socket.getaddrinfo = lambda *_: print('network'); t = time.process_time(); import fashiondiff; from fashiondiff import load_model, sample; print(time.process_time() - t)"
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)]
    assert min(map(float, said)) < 1, said

def test_imports_and_samples_without_the_optional_packages(tmp_path):
    "whatever settings.ini names for developers or Inception alone"
    settings = ConfigParser(delimiters="="); settings.read(ROOT / "settings.ini"); names = lambda k: set(re.findall(r"(?:^| )([\w-]+)", settings["DEFAULT"][k]))
    optional = {n.replace("-", "_") for n in (names("dev_requirements") | names("inception_requirements")) - names("requirements") - {"setuptools"}}
    assert {"torch_fidelity", "diffusers", "scipy"} <= optional
    code = f"""import sys
for name in {optional}: sys.modules[name] = None                      # importing it raises ImportError
import fashiondiff; dir(fashiondiff)
from fashiondiff.commands import sample_main
sample_main("--class bag --n_samples 1 --steps 2 --out a".split())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "a/samples_grid.png").is_file(), done.stderr

@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment_and_works(wheel, tmp_path):
    "the one test that asks a package index"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}; run = lambda *line: subprocess.run([str(c) for c in line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
    run(sys.executable, "-m", "venv", "empty"); there = tmp_path / "empty/bin"
    done = run("uv", "pip", "install", "--python", there / "python", wheel) if shutil.which("uv") else run(there / "pip", "install", wheel)
    assert done.returncode == 0, done.stderr
    done = run(there / "fashiondiff_sample", "--class", "bag", "--n_samples", 2, "--steps", 2)
    assert done.returncode == 0 and (tmp_path / "samples/samples_grid.png").is_file(), done.stderr
    done = run(there / "fashiondiff_eval", "--dataset", "sample", "--extractors", "fmnist", "--n_samples", 50, "--steps", 1)
    assert done.returncode == 0 and "| fashion | fmnist | 50 |" in done.stdout, done.stderr
    assert str(there.parent) in run(there / "python", "-c", "import fashiondiff; print(fashiondiff.__file__)").stdout

def test_shipped_weights_fit_and_carry_their_card():
    sizes = [p.stat().st_size for p in (ROOT / "fashiondiff/weights").glob("*.safetensors")]
    assert sizes and sum(sizes) < 15e6 and sum(p.stat().st_size for p in (ROOT / "weights").glob("*.safetensors")) < 15e6
    for name in shipped_models():
        card = load_model(name).card
        assert {"preset", "epochs", "hardware", "minutes", "seed", "recognised"} <= set(card), name

def test_every_class_is_recognised_by_a_classifier_the_model_never_met():
    "20 of each class at guidance 1.5; no class may be lost"
    model, schedule, *_ = load_model()
    x = sample(guide(model, 1.5), schedule, range(10), n=20, seed=123, batch_size=100)
    labels = torch.arange(10).repeat_interleave(20)
    clf = load_classifier()
    assert class_accuracy(clf, x, labels) > 0.93
    for c in range(10): assert class_accuracy(clf, x[labels == c], labels[labels == c]) >= 0.5, c

def test_image_i_of_a_seed_does_not_depend_on_its_company():
    model, schedule, *_ = load_model()
    assert torch.equal(noise_like(5, range(7), (1, 28, 28))()[:3], noise_like(5, range(3), (1, 28, 28))())
    many, few = (sample(model, schedule, "dress", n=n, seed=5, batch_size=b, sampler=s) for n, b, s in ((7, 7, "dpmpp_2m"), (3, 2, "dpmpp_2m")))
    assert (many[:3] - few).abs().max() < 1 / 127.5
    many, few = (sample(model, schedule, "dress", n=n, seed=5, batch_size=b, sampler="ddpm", steps=30) for n, b in ((5, 5), (2, 1)))
    assert (many[:2] - few).abs().max() < 1 / 127.5
