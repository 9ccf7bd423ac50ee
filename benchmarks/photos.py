"""How near a model that reads comes to real photos, how well it obeys, and what that costs: `python benchmarks/photos.py --model latent256`.

Draws an image for each photo held out, from one of its captions, and measures all by the judge that comes with the package: Fréchet distance
of its features from those of the photos held out, and how often article and colour are recognised. The floor: as many photos of the training
set. Then 64 prompts, eight articles in eight colours, four images of each; seconds for one image, and the most memory that drawing took. The
judge looks at 64 pixels, to which larger images are shrunk. Writes OUT/MODEL.json and OUT/MODEL.md; images are kept in OUT and used again.
"""
import argparse, json, resource, time
from pathlib import Path
import torch
from torchvision.transforms.v2.functional import resize
from fashiondiff.data import to_float, to_uint8
from fashiondiff.evaluation import frechet_distance, summarise
from fashiondiff.latent import Painter
from fashiondiff.photos import class_ids, photos, typed
from fashiondiff.text import adherence, captioned, load_judge
from fashiondiff.training import pick_device, write_whole

COLOURS, ARTICLES = "red blue green yellow pink black white brown".split(), {"t-shirt": "Tshirts", "shirt": "Shirts", "dress": "Dresses", "sweater": "Sweaters", "handbag": "Handbags", "sports shoes": "Sports Shoes", "watch": "Watches", "cap": "Caps"}
PROMPTS = [f"{'' if kind.endswith('shoes') else 'a '}{colour} {kind} on white background" for colour in COLOURS for kind in ARTICLES]

def small(x): return to_uint8(resize(to_float(x), [64, 64], antialias=True)) if x.shape[-1] != 64 else x

def drawn(paint, said, path, n=1, **how):
    "`n` images for each caption, as the judge sees them, uint8 `[n·N, 3, 64, 64]`; from the file if they have been drawn before"
    if path.is_file() and len(x := torch.load(path, weights_only=True)) == n * len(said): return x
    x = torch.cat([small(to_uint8(paint(said[i:i + 16], n, **how, seed=i))) for i in range(0, len(said), 16)])
    write_whole(path, lambda f: torch.save(x, f)); return x

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="latent256"); p.add_argument("--n_samples", type=int, default=10_000); p.add_argument("--guidance_scale", type=float); p.add_argument("--steps", type=int, default=20)
    p.add_argument("--device"); p.add_argument("--data"); p.add_argument("--out", default="runs/photos")
    args = p.parse_args(); out = Path(args.out); out.mkdir(parents=True, exist_ok=True)
    paint = Painter(args.model, args.device); c = paint.config; name, scale = Path(args.model).stem, c.guidance_scale if args.guidance_scale is None else args.guidance_scale
    how = dict(steps=args.steps, guidance_scale=scale)
    paint("a red dress", **how); t0 = time.monotonic(); paint("a red dress", 4, **how); seconds = (time.monotonic() - t0) / 4
    peak = torch.cuda.max_memory_allocated() if pick_device(args.device).startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    judge, test, train = load_judge(), photos("test", args.data, paint.size, c.fit), photos("train", args.data, paint.size, c.fit); n = min(args.n_samples, len(test))
    ids = lambda rows: (class_ids(rows["articleType"], judge.articles), class_ids(rows["baseColour"], judge.colours))
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:len(test)]
    said = [c[1] for c in captioned(c.dataset, "test", args.data, paint.size, c.fit)[1]][:n]
    real = small(test.images); moments = lambda x: summarise(judge, x.split(500)).moments
    sets = {"photos held out": (real, ids(test.rows)), "photos of the training set": (small(train.images[some]), [i[some] for i in ids(train.rows)]),
            f"{name}, guidance {scale:g}, {args.steps} steps": (drawn(paint, said, out / f"{name}_{scale:g}.pt", **how), [i[:n] for i in ids(test.rows)])}
    rows = [dict(what=k, n=len(x), fd=frechet_distance(moments(x), moments(real)), **adherence(judge, x, *y)) for k, (x, y) in sets.items()]
    asked = [torch.tensor([names.index(typed(v)) if typed(v) in names else -1 for v in values]).repeat_interleave(4) for names, values in ((judge.articles, [a for _ in COLOURS for a in ARTICLES.values()]), (judge.colours, [k for k in COLOURS for _ in ARTICLES]))]
    x = drawn(paint, PROMPTS, out / f"{name}_{scale:g}_prompts.pt", 4, **how); rows.append(dict(what="the 64 prompts", n=len(x), fd=None, **adherence(judge, x, *asked)))
    text = "| what | images | distance | article | colour | both |\n|---|---|---|---|---|---|\n" + "".join(f"| {r['what']} | {r['n']:,} | {'–' if r['fd'] is None else format(r['fd'], '.3f')} | {r['article']:.1%} | {r['colour']:.1%} | {r['both']:.1%} |\n" for r in rows)
    text += f"\n{seconds:.1f} s an image, at most {peak / 2**30:.1f} GiB ({paint.device})\n"
    write_whole(out / f"{name}.json", lambda f: f.write(json.dumps(dict(rows=rows, seconds=seconds, peak=peak, guidance_scale=scale, steps=args.steps), indent=1).encode())); write_whole(out / f"{name}.md", lambda f: f.write(text.encode())); print(text)

if __name__ == "__main__": main()
