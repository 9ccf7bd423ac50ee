"""How near `photos64` comes to real photos, and how well it obeys: `python benchmarks/photos.py`.

Draws an image for each photo held out, from one of its captions, and measures all by the judge that comes with the package: Fréchet distance
of its features from those of the photos held out, and how often article and colour are recognised. The floor: as many photos of the training
set. Writes OUT/photos.json and OUT/photos.md; images are kept in OUT and used again.
"""
import argparse, json
from pathlib import Path
import torch
from fashiondiff.data import to_uint8
from fashiondiff.evaluation import frechet_distance, summarise
from fashiondiff.guidance import guide
from fashiondiff.photos import class_ids, photos
from fashiondiff.sampling import sample_batches
from fashiondiff.text import adherence, captioned, get_encoder, load_judge
from fashiondiff.training import load_model, pick_device, pick_dtype, write_whole

def drawn(args, said, path, device):
    "One image for each caption, uint8 `[N, 3, S, S]`; from the file if they have been drawn before"
    if path.is_file() and len(x := torch.load(path, weights_only=True)) >= len(said): return x[:len(said)]
    m = load_model(args.model, device, pick_dtype(device)); encoder = get_encoder(m.config.text_encoder, m.config.text_length)
    x = torch.cat([to_uint8(b) for b in sample_batches(guide(m.model, args.guidance_scale), m.schedule, encoder(said), steps=args.steps, batch_size=args.batch_size, device=device)])
    write_whole(path, lambda f: torch.save(x, f)); return x

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="photos64"); p.add_argument("--n_samples", type=int, default=4204); p.add_argument("--guidance_scale", type=float, default=2.); p.add_argument("--steps", type=int, default=25)
    p.add_argument("--batch_size", type=int, default=64); p.add_argument("--device"); p.add_argument("--data"); p.add_argument("--out", default="runs/photos")
    args = p.parse_args(); device, out = pick_device(args.device), Path(args.out); out.mkdir(parents=True, exist_ok=True)
    judge, test, train = load_judge(), photos("test", args.data, 64), photos("train", args.data, 64); n = min(args.n_samples, len(test))
    ids = lambda rows: (class_ids(rows["articleType"], judge.articles), class_ids(rows["baseColour"], judge.colours))
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n]
    said = [c[1] for c in captioned("fashion_photos", "test", args.data, 64)[1]][:n]
    real = summarise(judge, test.images.split(500)).moments
    sets = {"photos held out": (test.images, ids(test.rows)), "photos of the training set": (train.images[some], [i[some] for i in ids(train.rows)]),
            f"{args.model}, guidance {args.guidance_scale:g}, {args.steps} steps": (drawn(args, said, out / f"{args.model}_{args.guidance_scale:g}.pt", device), [i[:n] for i in ids(test.rows)])}
    rows = [dict(what=k, n=len(x), fd=frechet_distance(summarise(judge, x.split(500)).moments, real), **adherence(judge, x, *y)) for k, (x, y) in sets.items()]
    text = "| what | images | distance | article | colour | both |\n|---|---|---|---|---|---|\n" + "".join(f"| {r['what']} | {r['n']:,} | {r['fd']:.3f} | {r['article']:.1%} | {r['colour']:.1%} | {r['both']:.1%} |\n" for r in rows)
    write_whole(out / "photos.json", lambda f: f.write(json.dumps(dict(distance=rows), indent=1).encode())); write_whole(out / "photos.md", lambda f: f.write(text.encode())); print(text)

if __name__ == "__main__": main()
