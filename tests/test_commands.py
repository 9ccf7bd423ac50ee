"The two commands as a person meets them: real processes, killed, resumed, fed nonsense."
import csv, json, os, signal, subprocess, sys, time
import pytest, torch
import forks
from PIL import Image
import fashiondiff.commands as commands
from fashiondiff.commands import sample_main, train_main
from fashiondiff.training import load_model, make_config, read_checkpoint

TRAIN = [sys.executable, "-m", "fashiondiff.commands", "train", "--dataset", "sample", "--device", "cpu", "--wandb", "disabled",
         "--preset", "tiny", "--base_channels", "16", "--batch_size", "100", "--lr_warmup", "5", "--mixed_precision", "no", "--steps", "40"]
SAMPLE = [sys.executable, "-m", "fashiondiff.commands", "sample", "--device", "cpu"]

def run(command, **kw): return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **kw)

def train(*flags):
    "The command in this process, which has paid for its imports already"
    train_main([*TRAIN[4:], *map(str, flags)])

def rows(out): return {int(r["step"]): r["loss"] for r in csv.DictReader((out / "log.csv").open())}

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nothing happened to"
    out = tmp_path_factory.mktemp("whole") / "run"
    assert forks.end(forks.start(forks.command, "train_main", [*TRAIN[4:], "--out", out], said := out.with_name("said"))) == 0, said.read_text()
    return out

def test_a_run_describes_itself(whole):
    assert {p.name for p in whole.iterdir()} == {"config.json", "log.csv", "best_model.pth", "final_model.pth", "checkpoint_last.pth", "samples_final.png"} | \
        {p.name for p in whole.glob("samples_epoch_*.png")}
    assert json.loads((whole / "config.json").read_text())["base_channels"] == 16
    assert set(rows(whole)) >= {10, 20, 30, 40}                                      # an epoch of the sample is 10 steps of 100
    assert load_model(whole).config.base_channels == 16 and len(load_model(whole).schedule) == 1000
    assert Image.open(whole / "samples_final.png").size == (8 * 29 + 1, 10 * 29 + 1)

@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_resumed_after_a_signal_it_ends_bitwise_the_same(whole, tmp_path, how):
    out = tmp_path / "run"
    p = forks.start(forks.command, "train_main", [*TRAIN[4:], "--out", out, "--checkpoint_epochs", "1"], tmp_path / "said")
    forks.wait_for(lambda: list(out.glob("checkpoint_epoch_*.pth")) or p.exitcode is not None)
    os.kill(p.pid, how)
    assert forks.end(p) == {signal.SIGKILL: -9, signal.SIGTERM: 0, signal.SIGINT: 130}[how], (tmp_path / "said").read_text()
    assert not (out / "final_model.pth").exists()
    train("--out", out, "--resume")
    a, b = read_checkpoint(whole / "checkpoint_last.pth"), read_checkpoint(out / "checkpoint_last.pth")
    assert a["step"] == b["step"] == 40 and same(a["ema"], b["ema"]) and same(a["model"], b["model"])
    assert rows(out) == rows(whole)

def test_max_minutes_stops_with_a_checkpoint_and_changes_nothing_else(whole, tmp_path, capsys):
    out = tmp_path / "run"
    train("--out", out, "--max_minutes", "0.001")
    step = read_checkpoint(out / "checkpoint_last.pth")["step"]
    assert 0 < step < 40 and "time is up" in capsys.readouterr().out and not (out / "final_model.pth").exists()
    train("--out", out, "--resume")
    assert same(read_checkpoint(whole / "final_model.pth")["ema"], read_checkpoint(out / "final_model.pth")["ema"])

def test_a_damaged_newest_checkpoint_is_passed_over(whole, tmp_path, capsys):
    out = tmp_path / "run"; out.mkdir()
    data = (whole / "checkpoint_last.pth").read_bytes()
    (out / "checkpoint_epoch_004.pth").write_bytes(data); (out / "checkpoint_last.pth").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match="passed over"): train("--out", out, "--resume", "--steps", "42")
    assert "step 42 of 42" in capsys.readouterr().out

BAD_TRAINING = {
    "--preset fats": "unknown preset 'fats'", "--image_size 30": "divisible by", "--image_size 32": "comes in 28 pixels only", "--channel_mults 1,2,2,2": "divisible by", "--num_classes 5": "have a label 9", "--base_channels 15": "even", "--steps -1": "steps = -1", "--batch_size 0": "at least 1", "--batch_size 2000": "does not fit",
    "--beta_schedule cosin": "one of linear, cosine", "--prediction noise": "one of eps, x0, v", "--resume": "no checkpoint", "--mixed_precision fp16": "needs a GPU",
    "--data nowhere --dataset fashion_mnist": "no Fashion-MNIST in nowhere", "--dataset mnist": "unknown data set", "--lr fast": "invalid float", "--base_chanels 3": "unrecognized", "--device tpu": "no device", "--max_minutes -1": "more than 0"}

@pytest.mark.parametrize("line", BAD_TRAINING)
def test_bad_training_input_gets_one_line_and_exit_2(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end: train_main([*TRAIN[4:], "--out", str(tmp_path / "run"), *line.split()])
    said = capsys.readouterr().err
    assert end.value.code == 2 and BAD_TRAINING[line] in said and len(said.strip().splitlines()) == 1

def test_resume_with_another_config_is_refused(whole, capsys):
    for flags, word in ((["--resume", "--lr", "0.5"], "lr = 0.5"), (["--resume", "--preset", "hq"], "hq"), (["--resume", "--seed", "7"], "seed = 7"), ([], "already holds a run")):
        with pytest.raises(SystemExit) as end: train_main([*TRAIN[4:], "--out", str(whole), *flags])
        said = capsys.readouterr().err
        assert end.value.code == 2 and len(said.strip().splitlines()) == 1 and word in said

def test_sampling_from_a_run_of_ones_own(whole, tmp_path):
    sample_main(["--device", "cpu", "--model", str(whole), "--class", "t-shirt_top", "--n_samples", "3", "--use_ddim", "--ddim_steps", "5", "--save_individual", "--out", str(tmp_path / "s")])
    assert sorted(p.name for p in (tmp_path / "s/individual").iterdir()) == [f"t-shirt_top_00{i}.png" for i in range(3)]
    im = Image.open(tmp_path / "s/individual/t-shirt_top_000.png"); assert im.size == (28, 28) and im.mode == "L"

def test_foreign_and_truncated_models_are_named(tmp_path, capsys):
    torch.save({"weights": 1}, tmp_path / "foreign.pth"); (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for name in ("foreign.pth", "cut.safetensors", "missing.pth", "."):
        with pytest.raises(SystemExit) as end: sample_main(["--device", "cpu", "--model", str(tmp_path / name), "--class", "bag", "--out", str(tmp_path / "s")])
        said = capsys.readouterr().err
        assert end.value.code == 2 and len(said.strip().splitlines()) == 1 and str(tmp_path / name) in said

def test_from_a_shell_too_an_error_is_one_line_and_exit_code_2(tmp_path):
    for command in ([*TRAIN, "--out", tmp_path / "run", "--lr", "-1"], [*SAMPLE, "--class", "pulover", "--out", tmp_path / "s"]):
        done = run(command)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr

def with_a_key(): os.environ.pop("WANDB_MODE", None); os.environ["WANDB_API_KEY"] = "0" * 40

def test_a_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch, capsys):
    import accelerate
    from fashiondiff.commands import train_main
    class Refused(Exception): pass                                                        # as wandb's own errors, of no kind that Python knows
    def refuse(*a, **k): raise Refused("no key\nand no terminal to ask for one")
    monkeypatch.setattr(accelerate.Accelerator, "init_trackers", refuse)
    with pytest.raises(SystemExit) as end: train_main("--preset tiny --dataset sample --device cpu --base_channels 16 --batch_size 10 --steps 1 --mixed_precision no --wandb online --out".split() + [str(tmp_path / "run")])
    said = capsys.readouterr().err; assert end.value.code == 2 and "wandb cannot start (no key and no terminal" in said and len(said.strip().splitlines()) == 1

def test_wandb_is_offline_by_default_and_keeps_loss_and_samples(tmp_path):
    line = [c for c in TRAIN[4:] if c not in ("--wandb", "disabled")]
    t0 = time.monotonic()
    p = forks.start(forks.command, "train_main", [*line, "--steps", "10", "--sample_epochs", "1", "--out", tmp_path / "run"], said := tmp_path / "said", with_a_key)
    assert forks.end(p) == 0, said.read_text()
    assert time.monotonic() - t0 < 60, "it waited for a network"
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))[0].stat().st_size > 1000 and list(folder.glob("files/media/images/*.png"))

@pytest.mark.parametrize("dataset, n, names", [("celeba", 1, ("face",)), ("celeba:Smiling", 2, ("not_smiling", "smiling")), ("cifar10", 10, None), ("fashion_photos", 3, ("0", "1", "2"))])
def test_names_that_are_known_without_the_data(dataset, n, names):
    found = commands.names_of(make_config("tiny", dataset=dataset, num_classes=n))
    assert found == names if names else found[3] == "cat"

def test_what_cannot_be_built_is_said_before_the_data_are_read(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(commands, "batches_of", lambda *_: pytest.fail("the data were read"))
    with pytest.raises(SystemExit): commands.train_main(["--preset", "photos64", "--size", "100", "--device", "cpu", "--wandb", "disabled", "--out", str(tmp_path / "run")])
    assert "divisible by" in capsys.readouterr().err and not (tmp_path / "run").exists()
