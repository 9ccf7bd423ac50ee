"The protocol: against independent implementations, on real and generated images, killed and resumed."
import json
from unittest.mock import patch
import pytest, torch
import forks
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from fashiondiff.commands import eval_main
from fashiondiff.data import DataError, classes, rng, sample_data, to_float, to_uint8
from fashiondiff.evaluation import EvaluationError, Inception, Moments, frechet_distance, real_images, summarise
from fashiondiff.guidance import guide
from fashiondiff.sampling import sample
from fashiondiff.training import load_model, shipped_models

EVAL = ["--dataset", "sample", "--device", "cpu", "--extractors", "fmnist", "--steps", "6"]

@pytest.mark.parametrize("n, m, d", [(400, 300, 8), (5000, 2000, 64), (60, 50, 100)])
def test_frechet_distance_is_that_of_torchmetrics_and_scipy(n, m, d):
    g = rng(d); a, b = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64), torch.rand(m, d, generator=g, dtype=torch.float64)
    ma, mb = Moments(), Moments()
    for part in a.split(37): ma.add(part)
    for part in b.split(41): mb.add(part)
    identity = torch.nn.Identity(); identity.num_features = d
    theirs = FrechetInceptionDistance(feature=identity); theirs.update(a, real=True); theirs.update(b, real=False)
    assert frechet_distance(ma, mb) == pytest.approx(theirs.compute().item(), rel=1e-6)
    if n > d:                                                       # scipy's square root wants full rank
        root = sqrtm(torch.cov(a.T).numpy() @ torch.cov(b.T).numpy()).real
        by_scipy = ((a.mean(0) - b.mean(0)) ** 2).sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * root.trace()
        assert frechet_distance(ma, mb) == pytest.approx(by_scipy.item(), rel=1e-6)

def test_two_real_halves_score_far_below_any_generated_set():
    "with the 10,000 test images where they are found, and else, less sharply, with the shipped ones"
    try: images = real_images()[0]["test"]
    except DataError: images = sample_data()[0][torch.randperm(1000, generator=rng(1))]
    n = len(images) // 2
    half, rest = (summarise("fmnist", map(to_float, x.split(500))).moments for x in (images[:n], images[n:]))
    few = summarise("fmnist", [to_float(images[:500])]).moments
    for name in (n for n in shipped_models() if load_model(n).config.dataset == "fashion_mnist"):
        model, schedule, *_ = load_model(name)
        made = sample(guide(model, 1.5), schedule, classes, n=50, steps=6, batch_size=100)
        generated = frechet_distance(summarise("fmnist", made.split(250)).moments, rest)
        assert generated > frechet_distance(few, rest), "at the same sample size"
        if n == 5000: assert generated > 10 * frechet_distance(half, rest), name

def evaluate(*flags): eval_main([*EVAL, *map(str, flags)])

def test_killed_in_the_middle_it_goes_on_and_ends_the_same(tmp_path):
    p = forks.start(forks.command, "eval_main", [*EVAL, "--n_samples", 120, "--batch_size", 30, "--out", tmp_path / "a"], tmp_path / "said")
    forks.wait_for(lambda: len(list((tmp_path / "a").rglob("*.safetensors"))) >= 2 or p.exitcode is not None)
    p.kill(); forks.end(p)
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "a").rglob("*.safetensors")}
    assert done and not (tmp_path / "a/evaluation.json").exists()
    for out in "ab": evaluate("--n_samples", 120, "--batch_size", 30, "--out", tmp_path / out)
    assert all(f.stat().st_mtime_ns == t for f, t in done.items()), "it drew again what was there"
    a, b = (json.loads((tmp_path / out / "evaluation.json").read_text()) for out in "ab")
    assert [{k: v for k, v in r.items() if k != "images_per_second"} for r in a] == [{k: v for k, v in r.items() if k != "images_per_second"} for r in b]
    assert {p.name for p in (tmp_path / "a").glob("*.*")} == {"evaluation.json", "evaluation.md", "distance.png", "fashion_samples.png", "fashion_confusion.png", "fashion_neighbours.png"}
    floor, row = a
    assert floor["subject"] == "real images" and floor["n"] == row["n"] == 120 and row["calls"] == 6 and row["accuracy"] > .8
    assert {"extractor", "n_train", "n_test", "sampler", "steps", "guidance_scale", "seed", "weights", "device", "fd_train_spread", "fd_test", "kid", "precision", "recall", "score", "diversity_by_class"} <= set(row)

def test_anybodys_pictures_and_comparisons(tmp_path, capsys):
    from fashiondiff.commands import save_images
    images, labels = sample_data()
    save_images(to_float(images[::17]), [classes[c] for c in labels[::17]], tmp_path / "named")
    save_images(1 - 2 * torch.rand(50, 3, 40, 20, generator=rng(0)), ["noise"] * 50, tmp_path / "noise")    # in colour, of another size, without classes
    evaluate("--images", tmp_path / "named", "--out", tmp_path / "a")
    assert "| named | fmnist | 59 |" in capsys.readouterr().out
    evaluate("--compare", tmp_path / "named", tmp_path / "noise", "--out", tmp_path / "b")
    rows = {r["subject"]: r for r in json.loads((tmp_path / "b/evaluation.json").read_text()) if r["subject"] != "real images"}
    assert rows["named"]["accuracy"] > .8 and "accuracy" not in rows["noise"] and rows["noise"]["fd_train"] > 5 * rows["named"]["fd_train"]

def test_inception_through_the_real_loading_code(tmp_path, monkeypatch):
    "random weights in the place where torch-fidelity looks for the real ones: what is tested is everything but their values"
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    monkeypatch.setenv("TORCH_HOME", str(tmp_path)); torch.manual_seed(0)
    with patch.object(fidelity, "load_state_dict_from_url", lambda *a, **k: None), patch.object(torch.nn.Module, "load_state_dict"):
        random = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    (tmp_path / "hub/checkpoints").mkdir(parents=True); torch.save(random.state_dict(), tmp_path / "hub/checkpoints" / fidelity.URL_INCEPTION_V3.rsplit("/", 1)[1])
    f, x = Inception(), to_float(sample_data()[0][:3])
    ours = f(x); assert ours.shape == (3, 2048) and ours.std() > 0
    up = fidelity.interpolate_bilinear_2d_like_tensorflow1x(to_uint8(x).float().repeat(1, 3, 1, 1), (299, 299), align_corners=False)
    y = (up - 128) / 128
    for name, layer in random.named_children():
        if name != "fc": y = layer(y)
    assert torch.allclose(ours, y.flatten(1), atol=1e-5), "grey to three channels, bytes, to 299 as TensorFlow 1 does, (x - 128) / 128"

def test_without_inceptions_weights_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    def no_network(*a, **k): raise OSError("no network")
    with patch.object(torch.hub, "download_url_to_file", no_network):
        with pytest.raises(EvaluationError, match="no network.*weights-inception.*checkpoints"): Inception()
        evaluate("--extractors", "inception,fmnist", "--n_samples", "50", "--out", tmp_path / "a")
    said = capsys.readouterr()
    assert "| fashion | inception | – | not measured |" in said.out and "| fashion | fmnist | 50 |" in said.out and "weights-inception" in said.err
