"""What a network call buys: `python benchmarks/samplers.py --n_samples 2000`.

Draws with every sampler at several numbers of steps, by default with the shipped model, and writes the distance from the training images,
the share recognised and the seconds for a hundred images into OUT/samplers.json and OUT/samplers.md. DDPM with all its steps is what the
others want to equal; on two CPU cores it takes an hour. Stopped and started again, it goes on where it was.
"""
import argparse, json
from pathlib import Path
from fashiondiff.data import to_float
from fashiondiff.evaluation import class_accuracy, fingerprint, frechet_distance, generate, load_classifier, real_images, summarise
from fashiondiff.sampling import network_calls
from fashiondiff.training import load_model, pick_device, pick_dtype, write_whole

plan = dict(dpmpp_2m=(5, 10, 20, 50), ddim=(10, 20, 50, 100), heun=(3, 5, 10), ddpm=(50, 250, 1000))

def to_markdown(rows):
    head = "| sampler | network calls | distance | recognised | seconds for 100 images |\n|---|---|---|---|---|\n"
    return head + "\n".join(f"| {r['sampler']} | {r['calls']:,} | {r['fd']:.3f} | {r['recognised']:.1%} | {r['seconds']:.1f} |" for r in rows) + "\n"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="fashion"); p.add_argument("--n_samples", type=int, default=2000); p.add_argument("--guidance_scale", type=float, default=1.5)
    p.add_argument("--device"); p.add_argument("--dtype", default="auto"); p.add_argument("--data"); p.add_argument("--out", default="runs/samplers")
    p.add_argument("--max_calls", type=int, default=1000, help="leave out what takes more")
    args = p.parse_args(); device, out = pick_device(args.device), Path(args.out)
    loaded = load_model(args.model, device, pick_dtype(device, args.dtype)); judge, weights = load_classifier(), fingerprint(loaded.model)
    images, labels = real_images(data=args.data); n = args.n_samples; real = summarise("fmnist", images["train"].split(500)).moments
    rows = [dict(sampler="real test images", calls=0, fd=frechet_distance(summarise("fmnist", images["test"][:n].split(500)).moments, real), recognised=class_accuracy(judge, to_float(images["test"][:n]), labels["test"][:n]), seconds=0.)]
    for sampler, steps in ((s, n) for s, ns in plan.items() for n in ns):
        if network_calls(sampler, steps) > args.max_calls: continue
        x, y, rate = generate(loaded, args.n_samples, out / f"{weights}_{sampler}_{steps}_{args.guidance_scale:g}", sampler, steps, args.guidance_scale, 0, batch_size=100, device=device)
        rows.append(dict(sampler=sampler, calls=network_calls(sampler, steps), fd=frechet_distance(summarise("fmnist", x.split(500)).moments, real), recognised=class_accuracy(judge, to_float(x), y), seconds=100 / rate))
        print(to_markdown(rows[-1:]).splitlines()[-1], flush=True)
        write_whole(out / "samplers.json", lambda f: f.write(json.dumps(dict(model=args.model, weights=weights, n=args.n_samples, guidance_scale=args.guidance_scale, device=device, dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."), rows=rows), indent=1).encode()))
        write_whole(out / "samplers.md", lambda f: f.write(to_markdown(rows).encode()))

if __name__ == "__main__": main()
