"""What a user might pick instead: the same images, the same minutes, the same machine.

    pip install -r benchmarks/requirements.txt
    python benchmarks/peers.py --minutes 10 --out runs/peers

Trains diffusers' UNet2DModel by the recipe of its unconditional example and lucidrains' denoising-diffusion-pytorch by the settings
of its Trainer, each with classes, without mirroring, and at the width that comes nearest to preset `fast`; draws with each one's own
sampler, 20 calls, at several guidance scales; and evaluates them beside our `tiny`, which trains for a fixed 2,900 steps, about ten
minutes on two cores. Stopped and started again, it goes on where it was.
"""
import argparse, copy, json, math, sys, time
from importlib.metadata import version
from pathlib import Path
import torch
from fashiondiff.commands import table, train_main
from fashiondiff.data import Batches, load_data, to_uint8
from fashiondiff.evaluation import generate, real_images, to_markdown
from fashiondiff.training import load_model, pick_dtype, read_log, write_whole

class Diffusers:
    "examples/unconditional_image_generation: batches of 16, AdamW 1e-4 with betas 0.95, 0.999, 500 steps of warm-up and a cosine, linear schedule, eps, EMA with its own warm-up; a tenth of the labels dropped"
    name, sampler, calls, batch_size = "diffusers UNet2DModel", "DPMSolverMultistep", 20, 16
    def __init__(self):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel
        self.package = f"diffusers {version('diffusers')}"
        self.net = UNet2DModel(sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D",) * 3,
                               up_block_types=("UpBlock2D",) * 3, num_class_embeds=11)
        self.schedule = DDPMScheduler(num_train_timesteps=1000)
        self.opt = torch.optim.AdamW(self.net.parameters(), 1e-4, betas=(.95, .999), weight_decay=1e-6, eps=1e-8)
        self.ema = EMAModel(self.net.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=.75)

    def step(self, x, y, i, share):
        y = torch.where(torch.rand(len(y)) < .1, 10, y); t = torch.randint(0, 1000, (len(x),)); eps = torch.randn_like(x)
        loss = (self.net(self.schedule.add_noise(x, eps, t), t, class_labels=y).sample - eps).square().mean()
        for g in self.opt.param_groups: g["lr"] = 1e-4 * min(1, (i + 1) / 500) * (1 + math.cos(math.pi * share)) / 2
        self.opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.); self.opt.step(); self.ema.step(self.net.parameters())

    def averaged(self): net = copy.deepcopy(self.net).eval(); self.ema.copy_to(net.parameters()); return net

    def draw(self, net, y, w):
        from diffusers import DPMSolverMultistepScheduler
        s = DPMSolverMultistepScheduler.from_config(self.schedule.config, timestep_spacing="trailing"); s.set_timesteps(self.calls); x = torch.randn(len(y), 1, 28, 28)
        for t in s.timesteps:
            out = net(x, t, class_labels=y).sample
            if w != 1: null = net(x, t, class_labels=torch.full_like(y, 10)).sample; out = null + w * (out - null)
            x = s.step(out, t, x).prev_sample
        return x

class Lucidrains:
    "classifier_free_guidance.py with the settings of its Trainer: batches of 16, Adam 1e-4 with betas 0.9, 0.99, cosine schedule, eps, EMA 0.995 every 10 steps"
    name, sampler, calls, batch_size = "denoising-diffusion-pytorch", "its DDIM", 20, 16
    def __init__(self):
        from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
        from ema_pytorch import EMA
        self.package = f"denoising-diffusion-pytorch {version('denoising-diffusion-pytorch')}"
        self.net = GaussianDiffusion(Unet(dim=32, num_classes=10, cond_drop_prob=.1, dim_mults=(1, 2, 4), channels=1), image_size=28, sampling_timesteps=self.calls, ddim_sampling_eta=0.)
        self.opt = torch.optim.Adam(self.net.parameters(), 1e-4, betas=(.9, .99)); self.ema = EMA(self.net, beta=.995, update_every=10)

    def step(self, x, y, i, share):
        loss = self.net((x + 1) / 2, classes=y)
        self.opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.); self.opt.step(); self.ema.update()

    def averaged(self): return self.ema.ema_model.eval()
    def draw(self, net, y, w): return net.sample(y, cond_scale=max(w, 1 + 1e-6), rescaled_phi=0.) * 2 - 1   # at exactly 1, version 2.3.4 cannot unpack its own result

def train(peer, path, minutes, images, labels):
    "Train for so many minutes of wall clock, keeping a checkpoint every minute; returns the steps taken"
    batches, step, done, saved = Batches(images, labels, peer.batch_size, 0), 0, 0., 0.
    if path.is_file():
        old = torch.load(path, weights_only=True); step, done = old["step"], old["seconds"]
        peer.net.load_state_dict(old["net"]); peer.opt.load_state_dict(old["opt"]); peer.ema.load_state_dict(old["ema"])
    start = time.monotonic() - done; torch.manual_seed(step)
    while (now := time.monotonic() - start) < 60 * minutes:
        peer.net.train(); peer.step(*batches.at(step), step, min(1, now / 60 / minutes)); step += 1
        if now - saved > 60 or time.monotonic() - start >= 60 * minutes:
            saved = now; state = dict(step=step, seconds=time.monotonic() - start, net=peer.net.state_dict(), opt=peer.opt.state_dict(), ema=peer.ema.state_dict())
            write_whole(path, lambda f: torch.save(state, f))
            if sys.stderr.isatty(): print(f"\r{peer.name}: {now / 60:.0f} min, {step} steps", end="", file=sys.stderr)
    return step

@torch.no_grad()
def drawn(peer, path, n, w):
    "n images of a peer as bytes and their labels, drawn once and kept"
    y = torch.arange(n) % 10
    if not path.is_file():
        torch.manual_seed(0); net, t0 = peer.averaged(), time.perf_counter()
        x = torch.cat([to_uint8(peer.draw(net, c, w)) for c in y.split(100)]); write_whole(path, lambda f: torch.save(dict(x=x, rate=n / (time.perf_counter() - t0)), f))
    old = torch.load(path, weights_only=True)
    return old["x"], y, old["rate"]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10); p.add_argument("--n_samples", type=int, default=1000); p.add_argument("--scales", default="1,2")
    p.add_argument("--extractors", default="fmnist,inception"); p.add_argument("--out", default="runs/peers"); p.add_argument("--data")
    p.add_argument("--ours", default=None, help="the folder of a finished run of `tiny`; trained now otherwise")
    args = p.parse_args(); out, scales = Path(args.out), [float(s) for s in args.scales.split(",")]; out.mkdir(parents=True, exist_ok=True)
    images, labels = load_data("fashion_mnist", "train", args.data); subjects = []
    for make in (Diffusers, Lucidrains):
        torch.manual_seed(0); peer = make(); slug = make.__name__.lower()
        steps = train(peer, out / f"{slug}_{args.minutes:g}min.pth", args.minutes, images, labels)
        for w in scales:
            x, y, rate = drawn(peer, out / f"{slug}_{steps}_{args.n_samples}_{w:g}.pth", args.n_samples, w)
            subjects.append((x, y, dict(subject=f"{peer.name}, guidance {w:g}", sampler=peer.sampler, guidance_scale=w, calls=peer.calls, images_per_second=rate, seed=0, device="cpu",
                                        weights=f"{peer.package}, {sum(q.numel() for q in peer.net.parameters()) / 1e6:.1f} M parameters, {steps:,} steps of {peer.batch_size} in {args.minutes:g} min")))
    run = Path(args.ours or out / "tiny")
    if not (run / "final_model.pth").is_file():
        train_main(["--preset", "tiny", "--out", str(run), "--wandb", "disabled", *(["--resume"] if list(run.glob("checkpoint_*.pth")) else []), *(["--data", args.data] if args.data else [])])
    dtype = pick_dtype("cpu"); ours, log = load_model(run, dtype=dtype), read_log(run)
    for w, where in [(w, (0, 1e9)) for w in scales] + [(1.5, (.3, 3.))]:
        how, name = dict(sampler="dpmpp_2m", steps=20, guidance_scale=w, guidance_interval=where, seed=0), f"{w:g}" + (" in the middle" if where[0] else "")
        x, y, rate = generate(ours, args.n_samples, out / f"tiny_{name.replace(' ', '_')}", **how)
        subjects.append((x, y, how | dict(subject=f"fashiondiff tiny, guidance {name}", calls=20, images_per_second=rate, device="cpu", dtype=str(dtype).removeprefix("torch."),
            weights=f"{sum(q.numel() for q in ours.model.parameters()) / 1e6:.1f} M parameters, {log['step'][-1]:,.0f} steps of {ours.config.batch_size} in {log['seconds'][-1] / 60:.1f} min")))
    rows, _ = table(args.extractors.split(","), subjects, *real_images(data=args.data))
    write_whole(out / "peers.json", lambda f: f.write(json.dumps(rows, indent=1).encode())); write_whole(out / "peers.md", lambda f: f.write(to_markdown(rows).encode()))
    print(to_markdown(rows))

if __name__ == "__main__": main()
