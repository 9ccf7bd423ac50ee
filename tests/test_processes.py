"Two real processes on a CPU: the same numbers as one, one set of files, a clean end."
import os, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest, torch
import forks
from fashiondiff.training import newest_checkpoint, read_checkpoint, read_log

HOW = ["--optimizer", "adamw", "--lr_decay", "none", "--checkpoint_minutes", ".002"]                # Muon rounds to bfloat16: two processes agree with one to 1e-3 only

def two(launcher, *line):
    return subprocess.Popen([sys.executable, "-m", *map(str, (*launcher, *line))], env=os.environ | dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def torchrun():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    return "torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port

def launch(out, *flags, launcher=None): return two(launcher or torchrun(), "-m", "fashiondiff.commands", "train", *forks.TINY, *HOW, "--out", out, *flags)

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
@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["copies", "shares"])
def test_asked_to_stop_two_processes_leave_together_and_two_go_on(one, tmp_path, how):
    out = tmp_path / "two"; p = launch(out, "--steps", 50, *how)
    forks.wait_for(lambda: (out / "checkpoint_previous.pth").is_file() or p.poll() is not None, 200)
    p.send_signal(signal.SIGTERM); said, _ = p.communicate(timeout=60)
    step = read_checkpoint(out / "checkpoint_last.pth")["step"]
    assert f"checkpoint written, at step {step} of 50, by 2 processes" in said
    p = launch(out, "--steps", 50, "--resume", *how); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and agree(read_log(out), one), said

@pytest.mark.slow
def test_two_processes_in_parts_with_blocks_computed_twice_train_as_one(one, tmp_path):
    "gradients are exchanged after the last part only, and every loss is within 1e-4 of one process without either"
    p = launch(tmp_path / "two", "--steps", 20, "--accumulate", 5, "--checkpoint_activations"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 20 of 20, by 2 processes" in said, said
    assert agree(read_log(tmp_path / "two"), {k: v[:20] for k, v in one.items()})

def moments(state): return {i: {k: v.shape for k, v in s.items()} for i, s in state["optimizer"]["state"].items()}

def test_two_processes_that_share_the_weights_train_as_one(one, tmp_path):
    "FSDP, in parts and with blocks computed twice: the losses of one process that holds everything. The files are whole: one goes on from them"
    out = tmp_path / "shared"; p = launch(out, "--steps", 10, "--shard", "--accumulate", 5, "--checkpoint_activations"); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 10 of 10, by 2 processes" in said, said
    last, final = (read_checkpoint(out / f"{n}.pth") for n in ("checkpoint_last", "final_model"))
    assert all(torch.equal(v, last["ema"][k]) for k, v in final["ema"].items()) and (out / "samples_final.png").is_file()
    assert agree(alone(out, "--steps", 50, "--resume", "--accumulate", 1), one)
    assert moments(read_checkpoint(out / "checkpoint_last.pth")) == moments(last)

@pytest.mark.slow
def test_accelerate_launches_as_well(one, tmp_path):
    "by the line for several GPUs: without one, `ACCELERATE_USE_CPU` makes them two processes on the CPU"
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    p = launch(tmp_path / "two", "--steps", 5, launcher=("accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port))
    said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "step 5 of 5, by 2 processes" in said and agree(read_log(tmp_path / "two"), {k: v[:5] for k, v in one.items()}), said

GRADIENTS = """
import sys, torch
from dataclasses import replace
from fashiondiff.commands import _leave
from fashiondiff.data import Batches, sample_data
from fashiondiff.optimizer import gathered, local, optimizers, scattered
from fashiondiff.training import Trainer, build, load_model, losses, make_accelerator, make_config, save_weights
import fashiondiff.transformer
torch.distributed.init_process_group("gloo") if not torch.distributed.is_initialized() else None
for changes in (dict(), dict(accumulate=3), dict(network="transformer", depth=2)):
    config = make_config("tiny", **dict(base_channels=16, batch_size=24, optimizer="adamw", mixed_precision="no") | changes)
    g = torch.Generator().manual_seed(3); net = build(config).train(); [p.data.normal_(0, .05, generator=g) for p in net.parameters() if not p.any()]; before = [p.detach().clone() for p in net.parameters()]
    for sharded in (False, True):
        t = Trainer(config, Batches(*sample_data(), 24), make_accelerator("cpu"), sharded=sharded, checkpoint_activations=sharded); own = t._slice
        with torch.no_grad():
            for mine, p in zip(t.raw.parameters(), net.parameters()): local(mine).copy_(local(scattered(p, mine)))
        t._slice = lambda *z: z; x0, eps, cond, step = t.inputs(); t._slice = own                            # the whole batch, for one network that is nobody's share
        net.zero_grad(); losses(net, t.schedule, x0, cond, step, eps).mean().backward()
        t.model.train(); t.gradients(*t.inputs())
        off = max((gathered(a.grad) - b.grad).abs().max().item() for a, b in zip(t.raw.parameters(), net.parameters())); largest = max(p.grad.abs().max().item() for p in net.parameters())
        assert off < 1e-5 < 1e-2 < largest, (changes, sharded, off, largest)
        for a, b in zip(t.raw.parameters(), net.parameters()): a.grad = scattered(b.grad.clone(), a)
        muon = [optimizers["muon"](z, .1, weight_decay=.1) for z in (t.raw, net)]; [o.step() for o in muon]              # whole matrices, whoever holds their rows
        off = max((gathered(a.detach()) - b).abs().max().item() for a, b in zip(t.raw.parameters(), net.parameters())); moved = max((b - z).abs().max().item() for b, z in zip(net.parameters(), before))
        assert off < .02 * moved, (changes, sharded, off, moved); [b.data.copy_(z) for b, z in zip(net.parameters(), before)]
        kept = sum(local(p).numel() for p in t.raw.parameters()) / sum(p.numel() for p in net.parameters())
        assert (kept < .52) == sharded, kept
        rank = torch.distributed.get_rank(); save_weights(net if rank == 0 else build(replace(config, seed=7)), config, path := f"{sys.argv[1]}/{rank}.safetensors"); torch.distributed.barrier()
        heir = Trainer(replace(config, init_from=path), t.batches, make_accelerator("cpu"), sharded=sharded); heir.inherit()
        for mine in (heir.raw, heir.averaged): assert all(torch.equal(gathered(a.detach()), b) for a, b in zip(mine.parameters(), load_model(f"{sys.argv[1]}/0.safetensors").model.parameters()))      # the first one's, though the second found other weights
print("same", flush=True)
torch.distributed.barrier(); _leave(0)                                                                   # as the commands do: gloo's threads do not always survive Python's tidying up
"""

def test_copies_and_shares_have_the_gradients_of_the_whole_batch(tmp_path):
    "two processes, float32, to 1e-5, and from the same gradients Muon's step: U-Net and transformer, at once and in parts, with blocks computed once (copies) and twice (shares); and both begin with trained weights"
    (tmp_path / "worker.py").write_text(GRADIENTS); p = two(torchrun(), tmp_path / "worker.py", tmp_path); said, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and said.count("same") == 2, said

BROKEN = """
import sys, torch
import fashiondiff.commands as commands
from fashiondiff.training import Trainer
rank, where, loss, report = int(sys.argv.pop(1)), sys.argv.pop(1), Trainer.loss, commands._report
def once(f, at):
    def broken(*args):
        if torch.distributed.get_rank() == rank and at(*args) == 3: raise ValueError(f"{where} of process {rank} fails")
        return f(*args)
    return broken
if where == "forward": Trainer.loss = once(loss, lambda trainer, *_: trainer.step)
else: commands._report = once(report, lambda a, bar, log: log.step)
commands.main(sys.argv[1:])
"""

@pytest.mark.parametrize("rank, where", [(0, "loop"), pytest.param(0, "forward", marks=pytest.mark.slow), pytest.param(1, "forward", marks=pytest.mark.slow)])
def test_an_error_in_one_of_those_that_share_ends_all(tmp_path, rank, where):
    "wherever it happens: the others wait for nothing that will never come, and the error is the one that is said"
    (tmp_path / "broken.py").write_text(BROKEN); p = two(torchrun(), tmp_path / "broken.py", rank, where, "train", *forks.TINY, *HOW, "--shard", "--steps", 20, "--out", tmp_path / "run")
    said, _ = p.communicate(timeout=120)
    assert p.returncode != 0 and f"{where} of process {rank} fails" in said, said
