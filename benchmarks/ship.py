"""Make the weights of a run shippable: `python benchmarks/ship.py runs/tiny tiny --hardware '2 CPU cores'`.

Writes `fashiondiff/weights/NAME.safetensors` in half precision with a card that says how it was trained and how often a
classifier that the model never met recognises its samples.
"""
import argparse, datetime
from pathlib import Path
import torch
from fashiondiff.data import classes, load_data, sample_data, to_float
from fashiondiff.evaluation import class_accuracy, diversity, load_classifier
from fashiondiff.guidance import guide, middle
from fashiondiff.sampling import default_steps, sample
from fashiondiff.training import load_model, pick_dtype, read_log, save_weights

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("run"); p.add_argument("name"); p.add_argument("--hardware", required=True)
p.add_argument("--minutes", type=float, help="if the clock of log.csv counts pauses too")
p.add_argument("--n", type=int, default=100, help="samples of each class to measure"); p.add_argument("--seed", type=int, default=2026)
args = p.parse_args()

model, schedule, config, card = load_model(args.run)
log, n_train = read_log(args.run), len(load_data(config.dataset)[0])
path = Path(__file__).resolve().parent.parent / f"fashiondiff/weights/{args.name}.safetensors"
save_weights(model, config, path)
model, schedule, *_ = load_model(path, dtype=pick_dtype("cpu"))                                  # measure what is shipped: half precision
labels, clf, real = torch.arange(10).repeat_interleave(args.n), load_classifier(), sample_data()
base = diversity(clf, to_float(real[0]), real[1])
def measured(scale, *where):
    x = sample(guide(model, scale, middle(schedule, *where)), schedule, classes, n=args.n, seed=args.seed, batch_size=250)
    return f"{class_accuracy(clf, x, labels):.1%}, diversity {diversity(clf, x, labels) / base:.2f}"
changed = {k: v for k, v in vars(config).items() if v != getattr(type(config)(), k) and k != "preset" and not (k == "epochs" and config.steps)}
card = dict(
    preset=config.preset + "".join(f" --{k} {v}" for k, v in changed.items()), parameters=f"{sum(q.numel() for q in model.parameters()) / 1e6:.2f} M",
    data=f"{n_train:,} training images of Fashion-MNIST", epochs=f"{card['step'] * config.batch_size / n_train:.1f} ({card['step']:,} steps of {config.batch_size})",
    hardware=args.hardware, minutes=f"{args.minutes or log['seconds'][-1] / 60:.2g}", seed=config.seed, date=datetime.date.today().isoformat(),
    recognised=f"{measured(1.)}, unguided; {measured(1.5)}, at guidance 1.5 in the middle; {measured(1.5, 0, 1e9)}, at guidance 1.5 everywhere (diversity of real images: 1)",
    measured_on=f"{10 * args.n:,} samples, dpmpp_2m, {default_steps('dpmpp_2m', schedule)} steps, seed {args.seed}")
save_weights(model, config, path, **card)
for k, v in card.items(): print(f"{k:12s} {v}")
