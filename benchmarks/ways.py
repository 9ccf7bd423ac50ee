"""What the same minutes of training give, one way and another: `python benchmarks/ways.py --minutes 3 --ways latents pixels/16`.

The same U-Net on product photos, asked for in words. At 256 pixels, `latents`: 32 × 32 × 4 of the autoencoder that comes with the project, folded 2 × 2.
`pixels/16`: folded 16 × 16, which gives as many positions, so that a step costs about the same; it predicts x0, since 64 channels cannot hold noise for
768 numbers. `pixels/8`: folded 8 × 8, four times as many positions. At 64 and 128 pixels, folded to 16 × 16 positions: a cosine schedule `shifted` by
2·log(32/size), as the presets have it, and the same one `unshifted`.
At 128 pixels folded to 32 × 32, shifted: `from nothing`, and `from photos64`, whose weights it begins with. After all of the time, half of it, a quarter
and so on, down to a minute, captions of photos held out are drawn (10 steps, guidance 2), and their Fréchet distance is measured by the judge that comes
with the package, at 64 pixels. Writes OUT/ways.json, where rows of other ways stay.
"""
import argparse, json, math, time
from pathlib import Path
import torch
from fashiondiff.data import to_uint8
from fashiondiff.evaluation import frechet_distance, summarise
from fashiondiff.guidance import guide
from fashiondiff.latent import judged, latent_captions
from fashiondiff.photos import photos
from fashiondiff.sampling import sample
from fashiondiff.text import CaptionBatches, captioned, get_encoder, load_judge
from fashiondiff.training import Trainer, make_accelerator, make_config, write_whole
from fashiondiff.vae import load_vae, to_photos

PIXELS = dict(autoencoder="", image_size=256, channels=3, schedule_shift=2 * math.log(32 / 256))
WAYS = {"latents": {}, "pixels/16": PIXELS | dict(patch_size=16, prediction="x0"), "pixels/8": PIXELS | dict(patch_size=8, attention_resolutions=(8,))}
for size, how in {64: dict(fit="pad", patch_size=4), 128: dict(patch_size=8, prediction="x0")}.items():
    for name, shift in dict(shifted=2 * math.log(32 / size), unshifted=0.).items(): WAYS[f"{size}, {name}"] = PIXELS | how | dict(image_size=size, schedule_shift=shift)
WAYS["128, from nothing"] = WAYS["128, shifted"] | dict(prediction="v", patch_size=4, attention_resolutions=(16, 8))
WAYS["128, from photos64"] = WAYS["128, from nothing"] | dict(init_from="photos64")

def batches(config, encoder, data):
    images, said = latent_captions(config, data=data) if config.autoencoder else captioned(config.dataset, "train", data, config.image_size, config.fit)
    return CaptionBatches(images, said, encoder, config.batch_size)

@torch.no_grad()
def distance(trainer, vae, encoder, said, judge, real):
    "Fréchet distance of pictures drawn from captions, and the seconds of drawing one"
    t0, guided = time.monotonic(), guide(trainer.averaged, 2.)
    with torch.autocast(trainer.device.type, torch.bfloat16): x = torch.cat([judged(to_uint8(to_photos(vae, sample(guided, trainer.schedule, encoder(said[i:i + 16]), 1, "dpmpp_2m", 10, i, batch_size=16, device=trainer.device, clip=vae is None)))) for i in range(0, len(said), 16)])
    return frechet_distance(summarise(judge, x.split(500)).moments, real), (time.monotonic() - t0) / len(said)

def train(way, args):
    "Train one way for the minutes given; yields a row at each of the marks"
    c = make_config("latent256", batch_size=64, steps=10**6, lr_decay="none", lr_warmup=50, ema_decay=.99, **WAYS[way]); judge = load_judge()
    encoder, vae = get_encoder(c.text_encoder, c.text_length, args.device), load_vae(c.autoencoder, args.device) if c.autoencoder else None
    size = c.image_size * (vae.factor if vae else 1); test = photos("test", args.data, size, c.fit); real = summarise(judge, judged(test.images).split(500)).moments
    said = [s[1] for s in captioned(c.dataset, "test", args.data, size, c.fit)[1]][::max(1, len(test) // args.n_samples)][:args.n_samples]
    trainer = Trainer(c, batches(c, encoder, args.data), make_accelerator(args.device, c.mixed_precision)); spent, t0 = 0., time.monotonic()
    marks = [args.minutes * 60 / 2**i for i in range(9) if args.minutes / 2**i >= 1 or not i][::-1]
    for log in trainer:
        if spent + time.monotonic() - t0 < marks[0]: continue
        spent += time.monotonic() - t0; fd, seconds = distance(trainer, vae, encoder, said, judge, real)
        yield dict(way=way, steps=trainer.step, seconds=spent, fd=fd, n=len(said), seconds_a_picture=seconds, parameters=sum(p.numel() for p in trainer.raw.parameters()))
        t0 = time.monotonic(); marks.pop(0)
        if not marks: return

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=3.); p.add_argument("--ways", nargs="+", required=True, choices=WAYS); p.add_argument("--n_samples", type=int, default=456)
    p.add_argument("--device", default="cpu"); p.add_argument("--data"); p.add_argument("--out", default="runs/ways")
    args = p.parse_args(); path = Path(args.out) / "ways.json"; path.parent.mkdir(parents=True, exist_ok=True)
    rows = [r for r in json.loads(path.read_text())["rows"] if r["way"] not in args.ways] if path.is_file() else []
    for way in args.ways:
        for row in train(way, args):
            rows.append(row); print(row, flush=True); write_whole(path, lambda f: f.write(json.dumps(dict(rows=rows), indent=1).encode()))

if __name__ == "__main__": main()
