"""How the defaults were chosen: `python benchmarks/sweeps.py --n_samples 2000`.

Draws from a model, by default the shipped one, with many scales of guidance, samplers, numbers of network calls and grids, and
measures each by distance from the training images and share recognised. Writes OUT/sweeps.json, which the chapter `05_evaluation` plots,
and OUT/sweeps.md. Stopped and started again, it goes on where it was. On two CPU cores 2,000 samples of each take about half an hour.
"""
import argparse, json
from pathlib import Path
import torch
from fashiondiff.data import to_float, to_uint8
from fashiondiff.evaluation import class_accuracy, fingerprint, frechet_distance, load_classifier, real_images, summarise
from fashiondiff.guidance import guide, middle
from fashiondiff.sampling import network_calls, sample_batches
from fashiondiff.training import load_model, pick_device, pick_dtype, write_whole

everywhere, part = (0, 1e9), (.3, 3.)
scales = [dict(scale=w, interval=i) for i, ws in ((everywhere, (1., 1.25, 1.5, 2., 3.)), (part, (1.25, 1.5, 2., 3.))) for w in ws]
calls = [dict(sampler=s, steps=n) for s, ns in dict(dpmpp_2m=(5, 7, 10, 15, 20, 50), ddim=(10, 20, 50), heun=(3, 5, 10), ddpm=(50, 250, 1000)).items() for n in ns]
grids = [dict(grid=g, steps=n) for g in ("trailing", "karras") for n in (10, 20)]
plan = [dict(dict(sampler="dpmpp_2m", steps=10, scale=1.25, interval=part), **d) for d in (*scales, *calls, *grids)]

def to_markdown(rows):
    head = "| sampler | grid | network calls | guidance | distance | recognised |\n|---|---|---|---|---|---|\n"
    guidance = lambda r: f"{r['scale']:g}" + ("" if r["interval"] == list(everywhere) or r["scale"] == 1 else " in the middle")
    line = lambda r: f"| {r['sampler']} | {r.get('grid', 'its own')} | {r['calls']:,} | {guidance(r)} | {r['fd']:.3f} | {r['recognised']:.1%} |"
    return head + "\n".join(map(line, rows)) + "\n"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="fashion"); p.add_argument("--n_samples", type=int, default=2000); p.add_argument("--max_calls", type=int, default=1000, help="leave out what takes more")
    p.add_argument("--device"); p.add_argument("--dtype", default="auto"); p.add_argument("--data"); p.add_argument("--out", default="runs/sweeps")
    args = p.parse_args(); device, n, path = pick_device(args.device), args.n_samples, Path(args.out) / "sweeps.json"; path.parent.mkdir(parents=True, exist_ok=True)
    loaded, judge = load_model(args.model, device, pick_dtype(device, args.dtype)), load_classifier()
    about = dict(model=args.model, weights=fingerprint(loaded.model), n=n, device=device, dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."), torch=torch.__version__)
    images, labels = real_images(data=args.data); real = summarise("fmnist", images["train"].split(500)).moments
    old = json.loads(path.read_text()) if path.is_file() else {}
    floor = dict(fd=frechet_distance(summarise("fmnist", images["test"][:n].split(500)).moments, real), recognised=class_accuracy(judge, to_float(images["test"][:n]), labels["test"][:n]))
    rows = old["rows"] if old.get("about") == about else []; y = torch.arange(n) % loaded.model.null
    for d in plan:
        d = json.loads(json.dumps(d))
        if network_calls(d["sampler"], d["steps"]) > args.max_calls or any(d == {k: r.get(k) for k in d} and r.get("grid") == d.get("grid") for r in rows): continue
        denoiser = guide(loaded.model, d["scale"], middle(loaded.schedule, *d["interval"]))
        x = torch.cat([to_uint8(b) for b in sample_batches(denoiser, loaded.schedule, y, d["sampler"], d["steps"], 1, 200, device, **{k: d[k] for k in ("grid",) if k in d})])
        rows.append(d | dict(calls=network_calls(d["sampler"], d["steps"]), n=n, fd=frechet_distance(summarise("fmnist", x.split(500)).moments, real), recognised=class_accuracy(judge, to_float(x), y)))
        print(to_markdown(rows[-1:]).splitlines()[-1], flush=True)
        write_whole(path, lambda f: f.write(json.dumps(dict(about=about, floor=floor, rows=rows), indent=1).encode())); write_whole(path.with_suffix(".md"), lambda f: f.write(to_markdown(rows).encode()))

if __name__ == "__main__": main()
