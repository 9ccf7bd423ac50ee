"""Which recipe gets furthest in the same minutes: `python benchmarks/recipes.py --minutes 6`.

Trains `tiny` with one thing changed at a time, each for so many minutes on one CPU core (the learning rate follows the clock here, so
that every recipe comes to its end), and measures 1,000 samples of each by the protocol of `05_evaluation`, with 10 steps and guidance
1.5. Adds a line to OUT/recipes.jsonl for each; those that are there already are left out.
"""
import argparse, json, time
from pathlib import Path
import torch
from fashiondiff.data import Batches, load_data
from fashiondiff.evaluation import class_accuracy, frechet_distance, load_classifier, summarise
from fashiondiff.guidance import guide
from fashiondiff.sampling import sample_batches
from fashiondiff.training import Trainer, make_accelerator, make_config

plain = dict(optimizer="adamw", timestep_sampling="uniform")
recipes = {
    "AdamW, 2e-3": plain | dict(lr=2e-3), "Muon": plain | dict(optimizer="muon", lr=3e-3), "Muon, twice the rate": plain | dict(optimizer="muon", lr=6e-3),
    "Muon, batches of 64": plain | dict(optimizer="muon", lr=3e-3, batch_size=64), "Muon, logit-normal steps": dict(lr=3e-3),
    "Muon, logit-normal, batches of 64, base 32 × (1, 3)": dict(batch_size=64, channel_mults=(1, 3)), "Muon, logit-normal, base 48": dict(base_channels=48),
}

class Timed(Trainer):
    "A trainer whose steps in all are as many as fit into its minutes"
    def __init__(self, *args, minutes): super().__init__(*args); self.start, self.seconds = time.monotonic(), 60 * minutes
    @property
    def total(self): return max(self.step + 1, self.step * self.seconds / (time.monotonic() - self.start)) if time.monotonic() - self.start < self.seconds else self.step

def measure(trainer, classifier, real, n=1000):
    y = torch.arange(n) % 10
    x = torch.cat(list(sample_batches(guide(trainer.averaged, 1.5), trainer.schedule, y, "dpmpp_2m", 10, 1, 125)))
    return dict(fd=frechet_distance(summarise("fmnist", x.split(500)).moments, real), recognised=class_accuracy(classifier, x, y))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=6); p.add_argument("--out", default="runs"); p.add_argument("--data"); p.add_argument("--only", nargs="*", help="parts of names")
    args = p.parse_args(); torch.set_num_threads(1); path = Path(args.out) / "recipes.jsonl"; path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["recipe"] for line in path.open()} if path.is_file() else set()
    images, labels = load_data("fashion_mnist", "train", args.data); real = summarise("fmnist", images.split(500)).moments
    for name, changes in recipes.items():
        if name in done or args.only and not any(o in name for o in args.only): continue
        config = make_config("tiny", **changes); losses = []
        trainer = Timed(config, Batches(images, labels, config.batch_size, 0), make_accelerator("cpu", config.mixed_precision), minutes=args.minutes)
        for log in trainer: losses.append(log.loss.item())
        row = dict(recipe=name, minutes=args.minutes, steps=trainer.step, images_per_second=trainer.step * config.batch_size / trainer.seconds, loss=sum(losses[-300:]) / len(losses[-300:]), **measure(trainer, load_classifier(), real))
        with path.open("a") as f: f.write(json.dumps(row) + "\n")
        print(row)

if __name__ == "__main__": main()
