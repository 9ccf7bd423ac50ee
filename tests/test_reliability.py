"Nothing lost: a run survives whatever may happen to its process, its disk and its numbers. SECURITY.md says what is promised."
import io, os, random, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path
import pytest, torch
from PIL import Image
import forks
from fashiondiff.commands import preview
from fashiondiff.data import Batches, sample_data
from fashiondiff.training import Trainer, fit, make_accelerator, make_config, newest_checkpoint, read_checkpoint, read_log, save_checkpoint
from make_readme import ROOT

def same(a, b):
    "Equal to the bit, all the way down"
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def contents(out): return {p.name: p.read_bytes() for p in out.glob("*.pth")}

def rows(out): return sum(1 for _ in (out / "log.csv").open()) - 1 if (out / "log.csv").is_file() else 0

def one_line(path, *words):
    "The only line that a command has said, which names these"
    lines = Path(path).read_text().strip().splitlines()
    assert len(lines) == 1 and all(w in lines[0] for w in words), lines
    return lines[0]

@pytest.fixture
def room():
    "A folder that other users may enter too"
    path = Path(tempfile.mkdtemp()); path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Twenty steps with checkpoints, which tests copy"
    out = tmp_path_factory.mktemp("reliability") / "run"
    assert forks.end(forks.train(out, "--steps", 20, "--checkpoint_minutes", 0)) == 0, Path(f"{out}.txt").read_text()
    return out

# killed anywhere

@pytest.mark.parametrize("times", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_bitwise_the_same(tmp_path, times):
    "SIGKILL at random steps, every other time in the middle of writing a checkpoint; each time at most the work since the last checkpoint is done again"
    steps, chance, halves, out, trace = 110, random.Random(2026), 0, tmp_path / "killed", tmp_path / "trace"
    assert forks.end(forks.start(forks.traced, tmp_path / "whole", tmp_path / "all", steps, 60)) == 0
    trace.touch()
    for i, at in enumerate(sorted(chance.sample(range(2, steps - 30), times))):
        last = newest_checkpoint(out); begin = read_checkpoint(last)["step"] if last else 0
        known = len(trace.read_text().split())
        p = forks.start(forks.traced, out, trace, steps, .0005)
        forks.wait_for(lambda: max(map(int, trace.read_text().split()[known:]), default=0) >= max(at, begin + 1))
        if i % 2: forks.wait_for(lambda: list(out.glob(".checkpoint_last.pth.*")))
        else: time.sleep(chance.random() * .05)
        p.kill(); assert forks.end(p) == -signal.SIGKILL
        halves += bool(list(out.glob(".checkpoint_last.pth.*")))
        assert int(trace.read_text().split()[known]) == begin + 1, "it went back further than its last checkpoint"
    assert halves >= times // 4, f"only {halves} of {times} were killed in the middle of writing"
    assert forks.end(forks.start(forks.traced, out, trace, steps, .0005)) == 0
    whole, killed = (read_checkpoint(tmp_path / n / "checkpoint_last.pth") for n in ("whole", "killed"))
    assert same(whole, killed) and whole["step"] == steps
    assert not list(out.glob(".*")), "what was half written is swept away"

def test_the_same_seed_gives_the_same_numbers(run, tmp_path):
    "and another seed others"
    assert forks.end(forks.train(tmp_path / "a", "--steps", 20)) == forks.end(forks.train(tmp_path / "b", "--steps", 20, "--seed", 1)) == 0
    a, b, c = (read_log(o)["loss"] for o in (run, tmp_path / "a", tmp_path / "b"))
    assert a == b and a != c
    assert same(read_checkpoint(run / "final_model.pth"), read_checkpoint(tmp_path / "a/final_model.pth"))

@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_asked_to_stop_it_writes_a_checkpoint_and_ends_within_five_seconds(tmp_path, number, code):
    "though another checkpoint is not due for an hour"
    out = tmp_path / "run"; p = forks.train(out, "--steps", 100000, "--checkpoint_minutes", 60)
    forks.wait_for(lambda: rows(out) > 3)
    t0 = time.monotonic(); os.kill(p.pid, number)
    assert forks.end(p) == code and time.monotonic() - t0 < 5
    assert read_checkpoint(out / "checkpoint_last.pth")["step"] == rows(out) > 3 and "checkpoint written" in Path(f"{out}.txt").read_text()

def test_a_preview_does_not_hold_up_a_stop(tmp_path):
    config = make_config("tiny", dataset="sample", base_channels=16, batch_size=50, steps=2, mixed_precision="no")
    trainer, calls = Trainer(config, Batches(*sample_data(), 50), make_accelerator("cpu")), []
    assert preview(trainer, tmp_path / "p.png", stop=lambda: calls.append(1) or len(calls) == 3) is None and len(calls) == 3 and not (tmp_path / "p.png").exists()

def test_checkpoint_minutes_bound_what_is_lost(tmp_path):
    out = tmp_path / "run"; p = forks.train(out, "--steps", 100000, "--checkpoint_minutes", .005)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file()); n = rows(out); forks.wait_for(lambda: rows(out) > n + 20); p.kill(); forks.end(p)
    seconds = read_log(out)["seconds"]; lost = max(seconds) - seconds[read_checkpoint(newest_checkpoint(out))["step"] - 1]
    assert lost < 2 and n > 1, f"{lost} seconds of work, where 0.3 were asked for"

@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b[:len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1:]], ids=["cut", "empty", "one bit"])
def test_a_corrupt_newest_checkpoint_is_reported_and_the_one_before_is_used(run, tmp_path, damage):
    out = shutil.copytree(run, tmp_path / "run"); newest = out / "checkpoint_last.pth"
    assert newest_checkpoint(out) == newest
    newest.write_bytes(damage(newest.read_bytes()))
    assert forks.end(forks.train(out, "--resume", "--steps", 20)) == 0
    said = Path(f"{out}.txt").read_text()
    assert f"passed over: {newest}" in said and "step 20 of 20" in said
    assert same(read_checkpoint(newest)["model"], read_checkpoint(run / "checkpoint_last.pth")["model"]), "the step that was lost is done again"

def test_a_disk_that_lies_does_not_cost_the_checkpoint_before(run, tmp_path, monkeypatch):
    "what was written is read back before it takes the place of what was there"
    t, path = small(), tmp_path / "a.pth"
    save_checkpoint(t, path); good, save = path.read_bytes(), torch.save
    def lying(state, f): whole = io.BytesIO(); save(state, whole); f.write(whole.getvalue()[:-1000])
    monkeypatch.setattr(torch, "save", lying)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"): save_checkpoint(t, path, before=tmp_path / "b.pth")
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ["a.pth"]

# disks, folders, clocks

@pytest.mark.parametrize("room_for", [20_000, 1_100], ids=["for log.csv alone", "for nothing"])
def test_a_full_disk_is_said_and_spoils_nothing(run, tmp_path, room_for):
    out = shutil.copytree(run, tmp_path / "run"); before = contents(out)
    assert forks.end(forks.train(out, "--resume", "--steps", 40, "--checkpoint_minutes", 0, before=forks.small_disk, args=(room_for,))) == 2
    one_line(f"{out}.txt", str(out / "checkpoint_last.pth"), "cannot be written", "File too large")
    after = contents(out); del before["final_model.pth"]                                              # taken away when the run went on
    assert after == before and not list(out.glob(".*"))

def test_a_read_only_folder_is_said(run, room):
    out = shutil.copytree(run, room / "run"); before = contents(out)
    out.chmod(0o555); (room / "said.txt").touch(); (room / "said.txt").chmod(0o666)
    assert forks.end(forks.train(out, "--resume", "--steps", 40, said=room / "said.txt", before=forks.nobody)) == 2
    one_line(room / "said.txt", str(out), "Permission denied")
    assert contents(out) == before

def test_a_new_folder_where_none_can_be_made_is_said(room):
    room.chmod(0o555); said = Path(tempfile.mkdtemp()) / "said.txt"; said.parent.chmod(0o777)
    assert forks.end(forks.train(room / "run", said=said, before=forks.nobody)) == 2
    one_line(said, str(room / "run"), "Permission denied"); shutil.rmtree(said.parent)

@pytest.mark.parametrize("what", ["log.csv", "everything"])
def test_files_deleted_while_it_runs_are_said(tmp_path, what):
    out = tmp_path / "run"; p = forks.train(out, "--steps", 100000, "--checkpoint_minutes", .001)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file())
    out.rename(tmp_path / "gone") if what == "everything" else (out / what).unlink()
    assert forks.end(p) == 2
    lines = [l for l in Path(f"{out}.txt").read_text().splitlines() if not l.startswith("epoch")]
    assert len(lines) == 1 and "cannot be written (No such file" in lines[0] and str(out) in lines[0]
    if what == "log.csv": assert read_checkpoint(out / "checkpoint_last.pth")["step"] > 0

def test_a_clock_set_back_changes_nothing(run, tmp_path):
    "neither while it runs nor in the dates of its files"
    out = tmp_path / "run"
    assert forks.end(forks.train(out, "--steps", 10, "--checkpoint_minutes", 0, before=forks.clock_set_back)) == 0
    for i, p in enumerate(sorted(out.glob("checkpoint_*.pth"))): os.utime(p, (i * 1e6, i * 1e6))
    assert newest_checkpoint(out).name == "checkpoint_last.pth", "by its steps, not by its date"
    assert forks.end(forks.train(out, "--resume", "--steps", 20, "--checkpoint_minutes", 0, before=forks.clock_set_back)) == 0
    assert read_checkpoint(out / "checkpoint_previous.pth")["step"] == 19 and all(s >= 0 for s in read_log(out)["seconds"])

def test_two_runs_do_not_share_a_folder_and_a_lock_dies_with_its_process(tmp_path):
    out = tmp_path / "run"; first = forks.train(out, "--steps", 100000, "--checkpoint_minutes", .001)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file())
    assert forks.end(forks.train(out, "--resume", said=tmp_path / "second.txt")) == 2
    one_line(tmp_path / "second.txt", str(out), "in use by another run")
    n = rows(out); forks.wait_for(lambda: rows(out) > n); first.kill(); forks.end(first)
    assert forks.end(forks.train(out, "--resume", "--max_minutes", .0001)) == 0

# numbers

def test_an_infinite_image_stops_the_run_and_names_step_losses_and_checkpoint(tmp_path):
    out = tmp_path / "run"
    assert forks.end(forks.train(out, "--steps", 100, "--checkpoint_minutes", 0, before=forks.infinite_image, args=(13,))) == 2
    losses = ", ".join(f"{v:.3g}" for v in read_log(out)["loss"][-5:])
    one_line(f"{out}.txt", "step 13: the loss is nan", f"after losses of {losses}", f"the last good checkpoint is {out}/checkpoint_last.pth")
    assert read_checkpoint(out / "checkpoint_last.pth")["step"] == 12 == len(read_log(out)["loss"])

def small(accelerator=None, **changes):
    config = make_config("tiny", dataset="sample", base_channels=16, batch_size=50, steps=6, mixed_precision="no", **changes)
    return Trainer(config, Batches(*sample_data(), 50), accelerator or make_accelerator("cpu"))

def test_an_infinite_gradient_stops_the_run_though_the_loss_is_finite(tmp_path):
    t = small(clip_grad=0.)
    t.raw.stem.weight.register_hook(lambda g: g * float("inf") if t.step == 3 else g)
    with pytest.raises(ValueError, match="step 4: the norm of the gradient is (inf|nan), after losses of"): list(fit(t, tmp_path / "run", log_steps=1))
    assert not (tmp_path / "run/final_model.pth").exists()

def test_the_gradient_scaler_of_half_precision_skips_such_a_step_and_the_log_counts_it(tmp_path):
    a = make_accelerator("cpu"); a.scaler = torch.amp.GradScaler("cpu", init_scale=1024.)
    t, weights = small(a), []
    t.raw.stem.weight.register_hook(lambda g: g * float("inf") if t.step == 3 else g)
    for log in fit(t, tmp_path / "run", log_steps=1): weights.append(t.raw.stem.weight.clone())
    assert [torch.equal(x, y) for x, y in zip(weights, weights[1:])] == [False, False, True, False, False]
    assert read_log(tmp_path / "run")["skipped"] == [0, 0, 0, 1, 1, 1] and read_checkpoint(tmp_path / "run/checkpoint_last.pth")["scaler"]["scale"] == 512

def test_a_scaler_that_skips_every_step_is_stopped(tmp_path):
    a = make_accelerator("cpu"); a.scaler = torch.amp.GradScaler("cpu", init_scale=1024.)
    t = small(a); t.config.steps = 100
    t.raw.stem.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(ValueError, match="step 25: the norm of the gradient"): list(fit(t, tmp_path / "run", log_steps=1))

@pytest.mark.parametrize("value", [-100., float("nan")], ids=["black", "not numbers"])
def test_a_preview_that_shows_nothing_is_said(tmp_path, value):
    t = small(prediction="x0"); list(t.averaged.parameters())[-1].data.fill_(value)
    with pytest.warns(UserWarning, match="80 of 80 preview images at step 0 are of one colour"): preview(t, tmp_path / "p.png", steps=2)
    assert Image.open(tmp_path / "p.png").size

# the tests themselves

@pytest.mark.parametrize("page", ["SECURITY.md", "README.md"])
def test_every_promise_names_a_test_that_is_there(page):
    there = set(re.findall(r"^def (test_\w+)", "".join(p.read_text(encoding="utf8") for p in (ROOT / "tests").glob("test_*.py")), re.M))
    named = re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf8"))
    assert len(named) >= 20 and not set(named) - there
    if page == "SECURITY.md": assert not {t for f in ("reliability", "processes", "fuzz") for t in re.findall(r"^def (test_\w+)", (ROOT / f"tests/test_{f}.py").read_text(), re.M)} - set(named) - {"test_neither_tests_nor_their_processes_reach_the_network", "test_every_promise_names_a_test_that_is_there"}

def test_neither_tests_nor_their_processes_reach_the_network():
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), .5)\nexcept OSError as e: print(e)\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said.splitlines() == [f"tests do not use the network: {h}" for h in ("192.0.2.1", "example.org")]
    with pytest.raises(OSError, match="do not use the network"): socket.create_connection(("192.0.2.1", 80), .5)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); s.listen(); socket.create_connection(s.getsockname(), 2).close()
