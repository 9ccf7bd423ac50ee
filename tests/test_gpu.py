"What only a CUDA device can show; skipped where there is none."
from dataclasses import replace
import itertools, pytest, torch
from fashiondiff.data import Batches, sample_data
from fashiondiff.guidance import guide
from fashiondiff.sampling import sample
from fashiondiff.training import Replayed, Trainer, load_model, make_accelerator, make_config, resume, save_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = make_config("tiny", base_channels=16, steps=40, batch_size=50, lr=6e-3, lr_warmup=5, mixed_precision="no", dropout=.1)

def fresh(config=quick, **kw): return Trainer(config, Batches(*sample_data(), config.batch_size, config.seed, "cuda"), make_accelerator("cuda", config.mixed_precision), **kw)

def weights(trainer, n):
    losses = [log.loss for log in itertools.islice(trainer, n)]
    return torch.stack(losses).cpu(), torch.cat([p.detach().flatten() for p in (*trainer.raw.parameters(), *trainer.averaged.parameters())]).cpu()

@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_recorded_step_is_the_step(optimizer):
    "the same losses, dropout included, and the same weights, but for the order in which a GPU adds"
    config = replace(quick, optimizer=optimizer); recorded, plain = fresh(config), fresh(config)
    assert isinstance(recorded.update, Replayed); del plain.update
    (a, u), (b, v) = weights(recorded, 20), weights(plain, 20)
    assert recorded.update.graph is not None and (a - b).abs().max() < 2e-2 and (u - v).norm() < 2e-2 * v.norm()
    assert len(set(a.tolist())) == 20

def test_resumed_on_a_gpu(tmp_path):
    first = fresh(); weights(first, 20); save_checkpoint(first, tmp_path / "a.pth")
    a, u = weights(first, 10); b, v = weights(resume(fresh(), tmp_path / "a.pth"), 10)
    assert (a - b).abs().max() < 2e-2 and (u - v).norm() < 2e-2 * v.norm()

def test_an_average_on_the_cpu_is_the_average():
    a, b = fresh(), fresh(ema_cpu=True); weights(a, 8); weights(b, 8)
    assert next(b.averaged.parameters()).device.type == "cpu" and next(b.network().parameters()).device.type == "cuda"
    for x, y in zip(a.averaged.parameters(), b.averaged.parameters()): assert (x.cpu() - y).norm() <= 2e-2 * y.norm() + 1e-4

def test_a_compiled_network_is_the_network():
    (a, u), (b, v) = weights(fresh(compile=True), 8), weights(fresh(), 8)
    assert (a - b).abs().max() < 2e-2 and (u - v).norm() < 2e-2 * v.norm()

@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_as_well(precision):
    (a, _), (b, _) = weights(fresh(replace(quick, mixed_precision=precision)), 40), weights(fresh(), 40)
    assert a.isfinite().all() and (a[-10:].mean() - b[-10:].mean()).abs() < .03

def test_sampling_on_a_gpu_gives_the_pictures_of_the_cpu():
    here, there = (load_model("tiny", d) for d in ("cpu", "cuda"))
    x, y = (sample(guide(m.model, 1.5), m.schedule, range(10), n=2, steps=8, batch_size=20, device=d) for m, d in ((here, "cpu"), (there, "cuda")))
    assert (x - y).abs().mean() < 1 / 127.5
