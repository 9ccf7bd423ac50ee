"""How fast the presets train: `python benchmarks/speed.py --presets fast,fast_tuned,hq,hq_tuned --compile`.

Times training steps of each preset on this device, after a warm-up, and writes seconds per epoch, images a second, and the share of the
device's rate for a large matrix product, measured in the same run, into OUT/speed.json and OUT/speed.md.
"""
import argparse, json, time
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from fashiondiff.data import Batches, load_data
from fashiondiff.training import Trainer, build, make_accelerator, make_config, pick_device, write_whole

def sync(device): torch.cuda.synchronize() if str(device).startswith("cuda") else None

def flops(config):
    "floating-point operations of a training step for one image, counted"
    net, shape = build(config), (1, config.channels, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter: net(torch.zeros(shape), torch.tensor([5]), torch.tensor([3])).sum().backward()
    return counter.get_total_flops()

def rate(f, device, n):
    sync(device); t0 = time.perf_counter(); [f() for _ in range(n)]; sync(device)
    return (time.perf_counter() - t0) / n

def peak(device, size):
    "operations a second of a product of two random matrices in bfloat16"
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16); a @ b
    return 2 * size**3 / rate(lambda: a @ b, device, 10)

def to_markdown(rows):
    lines = [f"| {r['preset']} | {r['batch_size']} | {r['precision']} | {'recorded' if r['recorded'] else ''}{' and compiled' if r['compiled'] else ''} | {r['ms']:.1f} | {r['s_epoch']:.2f} | {r['images_s']:,.0f} | {r['share']:.0%} |" for r in rows]
    return "| preset | batch | precision | steps | ms a step | s an epoch | images a second | of the peak |\n|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--presets", default="tiny,fast,fast_tuned"); p.add_argument("--mixed_precision", help="instead of the preset's own"); p.add_argument("--compile", action="store_true")
    p.add_argument("--steps", type=int, default=30); p.add_argument("--device"); p.add_argument("--data"); p.add_argument("--out", default="runs/speed")
    args = p.parse_args(); device, out = pick_device(args.device), Path(args.out); out.mkdir(parents=True, exist_ok=True)
    images, labels = load_data("fashion_mnist", data=args.data); top, rows = peak(device, 8192 if device.startswith("cuda") else 1024), []
    for name in args.presets.split(","):
        c = make_config(name, **({"mixed_precision": args.mixed_precision} if args.mixed_precision else {}))
        t = Trainer(c, Batches(images, labels, c.batch_size, 0, device), make_accelerator(device, c.mixed_precision), args.compile)
        for _ in range(8): t.one_step()
        seconds = rate(t.one_step, device, args.steps)
        rows.append(dict(preset=name, batch_size=c.batch_size, precision=c.mixed_precision, compiled=args.compile, recorded="update" in vars(t), device=torch.cuda.get_device_name() if device.startswith("cuda") else "cpu", torch=torch.__version__,
                         ms=1000 * seconds, s_epoch=seconds * len(t.batches), images_s=c.batch_size / seconds, share=flops(c) * c.batch_size / seconds / top, peak=top))
        print(to_markdown(rows[-1:]).splitlines()[-1], flush=True)
        write_whole(out / "speed.json", lambda f: f.write(json.dumps(rows, indent=1).encode())); write_whole(out / "speed.md", lambda f: f.write(to_markdown(rows).encode()))

if __name__ == "__main__": main()
