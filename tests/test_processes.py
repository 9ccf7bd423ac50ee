"Two real processes on a CPU: the same numbers as one, one set of files, a clean end."
import os, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest, torch
import forks
from fashiondiff.training import newest_checkpoint, read_checkpoint, read_log

HOW = ["--optimizer", "adamw", "--lr_decay", "none", "--checkpoint_minutes", ".002"]                # Muon rounds to bfloat16: two processes agree with one to 1e-3 only

def launch(out, *flags):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    line = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port, "-m", "fashiondiff.commands", "train", *forks.TINY, *HOW, "--out", out, *flags]
    return subprocess.Popen([sys.executable, *map(str, line)], env=os.environ | dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def alone(out, *flags):
    assert forks.end(forks.train(out, *HOW, *flags)) == 0, Path(f"{out}.txt").read_text()
    return read_log(out)

def agree(a, b, within=1e-4): return a["step"] == b["step"] and max(abs(x - y) for x, y in zip(a["loss"], b["loss"])) < within

@pytest.fixture(scope="module")
def one(tmp_path_factory): return alone(tmp_path_factory.mktemp("one") / "run", "--steps", 50)

def test_two_processes_train_as_one(one, tmp_path):
    "50 steps in float32 without dropout, every loss within 1e-4; one log and one set of checkpoints"
    p = launch(tmp_path / "two", "--steps", 50); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 50 of 50, by 2 processes" in said, said
    two = read_log(tmp_path / "two")
    assert two["step"] == list(range(1, 51)) and agree(one, two) and max(abs(a - b) for a, b in zip(one["loss"], one["loss"][1:])) > 1e-3
    assert {p.name for p in (tmp_path / "two").iterdir()} == {"config.json", "log.csv", "final_model.pth", "best_model.pth", "checkpoint_last.pth", "checkpoint_previous.pth", "samples_final.png"}
    assert torch.equal(*(read_checkpoint(tmp_path / "two" / n)["ema"]["stem.weight"] for n in ("final_model.pth", "checkpoint_last.pth")))

@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_worker_killed_all_end_and_one_process_goes_on(one, tmp_path, rank):
    out = tmp_path / "two"; p = launch(out, "--steps", 50)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file() or p.poll() is not None, 200)
    workers = psutil.Process(p.pid).children()
    next(w for w in workers if w.environ().get("RANK") == str(rank)).kill(); t0 = time.monotonic()
    said, _ = p.communicate(timeout=60)
    assert p.returncode != 0 and time.monotonic() - t0 < 45 and not [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]
    assert len(workers) == 2 and 0 < read_checkpoint(newest_checkpoint(out))["step"] < 50
    if rank: assert "this process cannot reach the others of its run: go on with --resume" in said, said
    assert agree(alone(out, "--steps", 50, "--resume"), one), "another number of processes, the same run"

@pytest.mark.slow
def test_asked_to_stop_two_processes_leave_together_and_two_go_on(one, tmp_path):
    out = tmp_path / "two"; p = launch(out, "--steps", 50)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file() or p.poll() is not None, 200)
    p.send_signal(signal.SIGTERM); said, _ = p.communicate(timeout=60)
    step = read_checkpoint(out / "checkpoint_last.pth")["step"]
    assert f"checkpoint written, at step {step} of 50, by 2 processes" in said
    p = launch(out, "--steps", 50, "--resume"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and agree(read_log(out), one), said

def test_two_processes_in_parts_with_blocks_computed_twice_train_as_one(one, tmp_path):
    "gradients are exchanged after the last part only, and every loss is within 1e-4 of one process without either"
    p = launch(tmp_path / "two", "--steps", 20, "--accumulate", 5, "--checkpoint_activations"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 20 of 20, by 2 processes" in said, said
    assert agree(read_log(tmp_path / "two"), {k: v[:20] for k, v in one.items()})

def moments(state): return {i: {k: v.shape for k, v in s.items()} for i, s in state["optimizer"]["state"].items()}

def test_two_processes_that_share_the_weights_train_as_one(one, tmp_path):
    "FSDP, in parts and with blocks computed twice: the losses of one process that holds everything. The files are whole: one goes on from them, and two that share from what it leaves"
    out = tmp_path / "shared"; p = launch(out, "--steps", 20, "--shard", "--accumulate", 5, "--checkpoint_activations"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 20 of 20, by 2 processes" in said, said
    last, final = (read_checkpoint(out / f"{n}.pth") for n in ("checkpoint_last", "final_model"))
    assert all(torch.equal(v, last["ema"][k]) for k, v in final["ema"].items()) and (out / "samples_final.png").is_file()
    assert agree(alone(out, "--steps", 35, "--resume", "--accumulate", 1), {k: v[:35] for k, v in one.items()})
    assert moments(read_checkpoint(out / "checkpoint_last.pth")) == moments(last)
    p = launch(out, "--steps", 50, "--resume", "--shard"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and agree(read_log(out), one), said

def test_muon_sees_whole_matrices_where_processes_share_them(tmp_path):
    "in bf16, which rounds: every loss within 0.003 of one process"
    how = "--steps", 12, "--optimizer", "muon", "--mixed_precision", "bf16"
    p = launch(tmp_path / "shared", *how, "--shard"); said, _ = p.communicate(timeout=200); assert p.returncode == 0, said
    assert agree(read_log(tmp_path / "shared"), alone(tmp_path / "one", *how), 3e-3)
