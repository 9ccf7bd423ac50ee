"""How good a model of CIFAR-10 is, at several strengths of guidance: `python benchmarks/cifar10.py RUN`, a folder that `fashiondiff_train --preset cifar10_tiny --out RUN` made.

Inception's weights are not asked for: a small `Classifier` is trained on the 50,000 training images first (and kept in OUT), and recognises, and gives the
features for, all figures. They compare the rows with each other and with real images, and with nothing else. Writes OUT/cifar10.json and ten pictures of each class.
"""
import argparse, json, time
from pathlib import Path
import torch
from fashiondiff.commands import write_png
from fashiondiff.data import to_float, to_grid
from fashiondiff.evaluation import Classifier, class_accuracy, generate, make_reference, measure, measure_floor, real_images, train_classifier
from fashiondiff.training import load_model, pick_device, pick_dtype, write_whole
from safetensors.torch import load_file, save_file

EPOCHS = 5

def classifier(images, labels, path):
    "Trained on the training images, or read from where it was kept"
    if not path.is_file(): save_file({k: v.contiguous() for k, v in train_classifier(images, labels, EPOCHS).state_dict().items()}, path)
    net = Classifier(channels=3); net.load_state_dict(load_file(path))
    return net.to(memory_format=torch.channels_last).eval()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run"); p.add_argument("--scales", nargs="+", type=float, default=[1., 1.5, 2., 3.]); p.add_argument("--n_samples", type=int, default=2000); p.add_argument("--steps", type=int, default=20)
    p.add_argument("--device"); p.add_argument("--data"); p.add_argument("--out", default="runs/cifar10_eval")
    args = p.parse_args(); out = Path(args.out); out.mkdir(parents=True, exist_ok=True)
    images, labels = real_images("cifar10", args.data); t0 = time.monotonic()
    net = classifier(images["train"], labels["train"], out / "classifier.safetensors"); print(f"classifier: {time.monotonic() - t0:.0f} s", flush=True)
    reference = make_reference(net, images, labels)._replace(labels=None); n = args.n_samples
    rows = [measure_floor(n, reference) | dict(accuracy=class_accuracy(net, images["test"], labels["test"]))]
    device = pick_device(args.device); loaded = load_model(args.run, device, pick_dtype(device))
    for scale in args.scales:
        how = dict(sampler="dpmpp_2m", steps=args.steps, guidance_scale=scale, guidance_interval=(.3, 3.), seed=0)
        x, y, speed = generate(loaded, n, out / f"{scale:g}", **how, batch_size=100, device=device)
        rows.append(measure(x, None, reference, subject=f"guidance {scale:g}", **how, images_per_second=speed) | dict(accuracy=class_accuracy(net, x, y)))
        print({k: rows[-1][k] for k in ("subject", "fd_train", "fd_train_spread", "accuracy", "precision", "recall", "copies", "images_per_second")}, flush=True)
        write_whole(out / "cifar10.json", lambda f: f.write(json.dumps(dict(parameters=sum(p.numel() for p in loaded.model.parameters()), rows=rows), indent=1).encode()))
        write_png(to_grid(to_float(torch.cat([x[y == c][:10] for c in range(10)])), 10), out / f"samples_{scale:g}.png")

if __name__ == "__main__": main()
