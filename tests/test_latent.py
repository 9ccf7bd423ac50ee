"The autoencoder, models on latents, and what is handed to others."
import hashlib, http.server, json, os, subprocess, sys, threading
import pytest, torch
from fashiondiff.data import rng, to_float, to_uint8
from fashiondiff.training import CheckpointError, ConfigError, find_model, load_model, make_config, shipped_files
from fashiondiff.unet import TextCond
from fashiondiff.vae import VAE, Crops, load_vae, measure_scale, psnr, save_vae, tiled, train_vae, widened

for module in ("datasets", "transformers", "diffusers"): pytest.importorskip(module)
from fashiondiff.latent import Painter, between, encode_to_disk, fill_in, latent_captions, latent_mask, repaint, text_to_image
from fashiondiff.photos import draw_photos, photos

def small(**kw): return VAE(**dict(dict(widths=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1)), **kw))

@pytest.fixture(scope="module")
def there(tmp_path_factory):
    "A folder with drawn photos, a small autoencoder, and the run of a model on its latents, trained by the command"
    from fashiondiff.commands import train_main
    there = tmp_path_factory.mktemp("latent"); draw_photos(there / "data" / "photos.parquet", 60)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("FASHIONDIFF_CACHE", str(there / "cache"))
        torch.manual_seed(0); save_vae(measure_scale(small(), photos("train", there / "data", 64).images), there / "vae.safetensors")
        train_main(f"--preset latent64 --autoencoder {there / 'vae.safetensors'} --base_channels 16 --batch_size 12 --steps 9 --lr_warmup 2 --sample_epochs 1 --mixed_precision no --wandb disabled --device cpu --data {there / 'data'} --out {there / 'run'}".split())
    return there

@pytest.fixture
def paint(there): return Painter(there / "run", "cpu", "float32")

@pytest.mark.parametrize("settings, shape", [({}, (4, 8, 8)), (dict(factor=4), (4, 16, 16)), (dict(latent_channels=16), (16, 8, 8)), (dict(channels=1), (4, 8, 8)), (dict(factor=16), (4, 4, 4))])
def test_there_and_back(settings, shape):
    v = small(**settings); x = torch.rand(2, settings.get("channels", 3), 64, 64) * 2 - 1
    z = v.encode(x); assert z.shape == (2, *shape) and v(x).shape == x.shape and v.factor == 64 // shape[1]
    assert v.encode(x[..., :32]).shape[-1] == shape[-1] // 2, "fully convolutional"

def test_a_side_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="60×64 pixels.*divisible by 8"): small().encode(torch.zeros(1, 3, 60, 64))

def test_every_term_moves_the_encoder():
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    class Batches:
        def at(self, step): return x
    for only in (dict(edges=1., kl=0.), dict(edges=0., kl=1.), dict(edges=0., kl=0., adversarial=1., critic_from=0)):
        torch.manual_seed(0); v = small(); before = {k: p.clone() for k, p in v.state_dict().items()}
        for _ in train_vae(v, Batches(), 2, **only): pass
        assert any(not torch.equal(before[k], p) for k, p in v.state_dict().items() if k.startswith("enc"))

def test_training_an_autoencoder_is_repeatable_and_learns(there, monkeypatch):
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(there / "cache")); x = photos("train", there / "data", 64).images
    def run():
        torch.manual_seed(0); v = small(); logs = list(train_vae(v, Crops(x, 32, 8), 60))
        return logs[0][0].l1, *logs[-1]
    (start, a, first), (_, b, second) = run(), run(); held = Crops(x, 32, 16, seed=9).at(0)
    assert a == b and all(torch.equal(p, q) for p, q in zip(first.state_dict().values(), second.state_dict().values())) and a.l1 < .9 * start
    assert psnr(first.dec(first.posterior(held).mean), held).mean() > psnr(torch.zeros_like(held), held).mean() + .5

def test_the_noise_of_the_latents_is_what_the_kl_term_keeps(there, monkeypatch):
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(there / "cache")); crops = Crops(photos("train", there / "data", 64).images, 32, 8); kl = {}
    for weight in (0., 1.):
        torch.manual_seed(0); *_, (log, _) = train_vae(small(), crops, 30, kl=weight); kl[weight] = log.kl
    assert kl[1.] < .1 < kl[0.]

def test_more_channels_begin_where_fewer_ended():
    v = small(); measure_scale(v, (torch.rand(8, 3, 32, 32) * 255).byte()); w = widened(v, 7); x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(w(x), v(x)); assert w.latent_channels == 7 and torch.equal(w.shift[:4], v.shift)

@pytest.mark.parametrize("shape, tile, margin", [((40, 56), 16, 13), ((17, 33), 8, 13), ((8, 8), 64, 13), ((30, 30), 7, 20)])
def test_tiles_are_the_whole(shape, tile, margin):
    v = VAE(widths=(8, 8)); z = torch.randn(1, 4, *shape, generator=rng(0))
    for p in v.parameters(): torch.nn.init.normal_(p, std=.1, generator=rng(1))
    with torch.no_grad(): whole, parts = v.decode(z), tiled(v.decode, z, tile, margin)
    assert whole.shape == parts.shape; torch.testing.assert_close(parts, whole, atol=1e-4 * whole.abs().max().item(), rtol=0)

def test_tiles_take_less_memory():
    "the most that is alive at once, counted by the allocations of layers"
    v = VAE(widths=(8, 8)); seen = []
    for m in v.dec: m.register_forward_hook(lambda _, i, o: seen.append(o.numel()))
    z = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        v.decode(z); whole = max(seen); seen.clear(); tiled(v.decode, z, 16, 13)
    assert max(seen) < whole / 2

@pytest.mark.parametrize("spoil", [lambda raw: raw[:-50], lambda raw: b"", lambda raw: b"{}" * 99, lambda raw: raw.replace(b"widths", b"widtsh")])
def test_a_spoiled_autoencoder_is_named(tmp_path, spoil):
    save_vae(small(), tmp_path / "a.safetensors"); (tmp_path / "a.safetensors").write_bytes(spoil((tmp_path / "a.safetensors").read_bytes()))
    with pytest.raises(CheckpointError, match="a.safetensors is not an autoencoder"): load_vae(tmp_path / "a.safetensors")

def test_encoding_that_was_killed_goes_on(there, tmp_path):
    "what was finished stays, and the latents are those of a run that was never interrupted"
    images = photos("all", there / "data", 64).images; torch.save(images, tmp_path / "x.pt")
    code = f"""
import os, torch
from fashiondiff.latent import encode_to_disk
from fashiondiff.vae import load_vae
n = 0
def tick(_):
    global n; n += 1
    if n == 2: os._exit(9)
encode_to_disk(load_vae({str(there / 'vae.safetensors')!r}), torch.load({str(tmp_path / 'x.pt')!r}), {str(tmp_path / 'z')!r}, part=16, tick=tick)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    done = json.loads((tmp_path / "z/parts.json").read_text()); del done["of"]; assert len(done) == 2
    times = {n: (tmp_path / "z" / n).stat().st_mtime_ns for n in done}; vae = load_vae(there / "vae.safetensors")
    z = encode_to_disk(vae, images, tmp_path / "z", 16); assert torch.equal(z, encode_to_disk(vae, images, tmp_path / "y", 16)) and len(z) == 2 * len(images)
    assert times == {n: (tmp_path / "z" / n).stat().st_mtime_ns for n in done}
    assert all(hashlib.sha256((tmp_path / "z" / n).read_bytes()).hexdigest() == d for n, d in json.loads((tmp_path / "z/parts.json").read_text()).items() if n != "of")

def test_captions_stay_with_their_photos(there, monkeypatch):
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(there / "cache")); vae = load_vae(there / "vae.safetensors"); p = photos("train", there / "data", 64)
    config = make_config("latent64", autoencoder=str(there / "vae.safetensors")); z, said = latent_captions(config, data=there / "data"); n = len(p)
    assert len(z) == len(said) == 2 * n and said[:n] == said[n:]
    for i in (0, 5, n - 1):
        torch.testing.assert_close(z[i].float(), vae.encode(to_float(p.images[i:i + 1]))[0], atol=5e-3, rtol=5e-3); torch.testing.assert_close(z[n + i].float(), vae.encode(to_float(p.images[i:i + 1]).flip(-1))[0], atol=5e-3, rtol=5e-3)
        assert p.rows["productDisplayName"][i] == said[i][-1] == said[n + i][-1]
    plain, _ = latent_captions(config, data=there / "data", mirrored=False); assert torch.equal(plain, z[:n])

def test_trained_from_a_shell_its_previews_are_photos(there):
    from PIL import Image
    size = Image.open(there / "run" / "samples_final.png").size; assert size[0] > 64 * 8 and (there / "run" / "final_model.pth").is_file()
    assert load_model(there / "run").model.shape == (4, 8, 8)

def test_asked_from_a_shell(there, tmp_path):
    from PIL import Image
    from fashiondiff.commands import sample_main
    def draw(*more): sample_main(["--model", str(there / "run"), "--prompt", "a red shirt", "--n_samples", "2", "--steps", "2", "--device", "cpu", "--dtype", "float32", "--save_individual", "--out", str(tmp_path), *more]); return Image.open(tmp_path / "individual" / "a red shirt_000.png")
    one, other = draw(), draw("--negative_prompt", "blue"); assert one.size == (64, 64) and one.mode == "RGB" and one.tobytes() != other.tobytes()
    ours = Painter(there / "run", "cpu", "float32")("a red shirt", 2, steps=2); assert (ours[0] - to_float(torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1))).abs().max() < 2 / 127.5

def test_a_model_that_reads_is_measured_by_the_command(there, tmp_path, monkeypatch, capsys):
    from fashiondiff.commands import eval_main
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(there / "cache"))
    ask = ["--model", str(there / "run"), "--steps", "2", "--device", "cpu", "--dtype", "float32", "--data", str(there / "data"), "--out", str(tmp_path)]
    eval_main(ask); rows = json.loads((tmp_path / "evaluation.json").read_text()); said = capsys.readouterr().out
    assert [r["subject"] for r in rows] == ["photos held out", "training photos", "run", "run, 64 prompts"] and [r["n"] for r in rows] == [6, 6, 6, 256] and "run, 64 prompts: 256 images" in said
    from PIL import Image
    assert abs(rows[0]["fd_test"]) < 1e-3 < rows[2]["fd_test"] and (tmp_path / "run_prompts.png").is_file() and Image.open(tmp_path / "run_prompts.png").size[0] > 8 * 64
    drawn = {p: p.stat().st_mtime_ns for p in (tmp_path / "samples").iterdir()}; eval_main(ask); assert {p: p.stat().st_mtime_ns for p in (tmp_path / "samples").iterdir()} == drawn, "nothing is drawn twice"
    eval_main([*ask, "--seed", "1"]); assert len(list((tmp_path / "samples").iterdir())) == 2 * len(drawn)
    for pair in ([str(there / "run"), "tiny"], ["tiny", str(there / "run")]):
        with pytest.raises(SystemExit): eval_main(["--compare", *pair, "--out", str(tmp_path), "--device", "cpu"])
        assert "run reads captions: measure it alone" in capsys.readouterr().err

def test_a_few_bytes_do_not_become_gigabytes(tmp_path):
    "scales that would spread a row over a matrix; an autoencoder whose settings ask for more than its file holds"
    from safetensors.torch import save_file
    from fashiondiff.training import pack
    save_file(dict(w=torch.zeros(1, 50_000, dtype=torch.int8), **{"w.scale": torch.ones(50_000)}), tmp_path / "a.safetensors", dict(config="{}"))
    with pytest.raises(CheckpointError, match="not a weights file"): load_model(tmp_path / "a.safetensors")
    pack(tmp_path / "b.safetensors", small().state_dict(), vae=small().settings | dict(widths=[30_000, 30_000]))
    with pytest.raises(CheckpointError, match="not an autoencoder"): load_vae(tmp_path / "b.safetensors")

def test_a_model_that_reads_says_so_when_asked_for_a_class(paint):
    from fashiondiff.sampling import inpaint, sample
    for asked in (None, "dress"):
        with pytest.raises(ValueError, match="this model reads captions"): sample(paint.model, paint.schedule, asked)
    filled = inpaint(paint.model, paint.schedule, torch.zeros(5, 4, 8, 8), torch.ones(1, 1, 8, 8), clip=False)
    with pytest.raises(ValueError, match="4 images at once do not go with 5 known ones"): sample(filled, paint.schedule, paint.encoder(["a dress"]), 5, batch_size=4, clip=False)

@pytest.mark.parametrize("text, said", [("\ufeffa red dress\n\nblue jeans\n".encode(), "16 images"), ("a cr\xe8me shirt".encode("latin1"), "prompts.txt is not UTF-8 text")])
def test_prompts_from_a_file_are_read_as_utf8(there, tmp_path, capsys, text, said):
    from fashiondiff.commands import sample_main
    (tmp_path / "prompts.txt").write_bytes(text); ask = ["--model", str(there / "run"), "--prompt", str(tmp_path / "prompts.txt"), "--n_samples", "8", "--steps", "2", "--device", "cpu", "--save_individual", "--out", str(tmp_path)]
    if "UTF" in said:
        with pytest.raises(SystemExit): sample_main(ask)
    else: sample_main(ask); assert (tmp_path / "individual" / "a red dress_000.png").is_file()
    assert said in "".join(capsys.readouterr())

@pytest.mark.parametrize("change, said", [("--autoencoder /nowhere.safetensors", "there is no model"), ("--autoencoder /nowhere", "no autoencoder"), ("--channels 16", "have 4"), ("--fit sideways", "unknown fit"), ("--image_size 40 --attention_resolutions 20", "size 320")])
def test_latents_that_do_not_fit_are_named_in_one_line(there, change, said, tmp_path, capsys, monkeypatch):
    from fashiondiff.commands import train_main
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as end: train_main(f"--preset latent64 --autoencoder {there / 'vae.safetensors'} --mixed_precision no --wandb disabled --device cpu --data {there / 'data'} --out {tmp_path / 'x'} {change}".split())
    err = capsys.readouterr().err; assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1

def test_the_same_seed_the_same_picture(there, paint):
    a = paint("a red shirt", steps=3); assert a.shape == (1, 3, 64, 64) and torch.equal(a, paint("a red shirt", steps=3))
    ask = lambda **kw: text_to_image("a red shirt", steps=3, model=str(there / "run"), device="cpu", **kw)
    assert torch.equal(ask(), ask()) and (ask() - a).abs().max() < .1 and not torch.equal(ask(), ask(seed=1)), "in bfloat16 where the processor has it"
    assert (paint(["a red shirt", "a bag"], steps=3)[:1] - a).abs().max() < 1 / 127.5 and not torch.equal(paint("a red shirt", steps=3, seed=1), a)

def test_a_negative_prompt_leads_away_and_none_is_as_before(paint):
    kw = dict(steps=3, guidance_scale=3.); plain = paint("a red shirt", **kw)
    assert torch.equal(paint("a red shirt", negative_prompt="", **kw), plain) and not torch.equal(paint("a red shirt", negative_prompt="a bag", **kw), plain)
    same = paint("a red shirt", steps=3, guidance_scale=7., negative_prompt="a red shirt"); assert (same - paint("a red shirt", steps=3, guidance_scale=1.)).abs().max() < 1e-3, "away from itself leads nowhere"

def test_holes_are_filled_and_the_rest_is_kept(there, paint):
    x = to_float(photos("test", there / "data", 64).images[:2]); mask = torch.ones(2, 1, 64, 64); mask[..., 20:40, 20:40] = 0
    y = fill_in(paint, x, mask, "a red shirt", steps=3); assert torch.equal(y * mask, x * mask) and not torch.equal(y, x)
    hole = x.clone(); hole[..., 20:40, 20:40] = .5; assert torch.equal(fill_in(paint, hole, mask, "a red shirt", steps=3), y), "it looked into the hole"
    m = latent_mask(mask, 8); assert m.shape == (2, 1, 8, 8) and m[0, 0, 2:5, 2:5].sum() == 0 and m[0, 0, 0].all()

def test_strength_says_how_much_is_redone(there, paint):
    x = to_float(photos("test", there / "data", 64).images[:1]); change = [(repaint(paint, x, "a red shirt", s, steps=4) - paint.decode(paint.encode(x))).abs().mean().item() for s in (0., .3, .9)]
    assert change[0] < 1e-6 < change[1] < change[2]

def test_between_two_captions(paint):
    a, b = (paint.encoder([c]) for c in ("a red shirt", "a long blue dress for the evening")); way = between(a, b, 3)
    assert isinstance(way, TextCond) and torch.equal(way.mask[1], a.mask[0] | b.mask[0]) and torch.allclose(way.emb[0][a.mask[0]], a.emb[0][a.mask[0]])
    assert (paint(way[0:1], steps=2) - paint("a red shirt", steps=2)).abs().max() < 1e-3

def test_what_reads_no_words_is_refused():
    with pytest.raises(ConfigError, match="knows classes and no words"): Painter("tiny", "cpu")

def test_shipped_autoencoders_fold_photos():
    "a smooth picture comes back; each file in `weights/` has a card"
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=rng(3)) * 1.6 - .8, (96, 96), mode="bicubic").clamp(-1, 1)
    names = [n for n in shipped_files() if n.startswith("vae")]; assert "vae" in names
    for name in names:
        v = load_vae(name); assert {"trained", "hardware", "psnr"} <= set(v.card) and "dB" in v.card["psnr"], name
        with torch.no_grad(): assert psnr(v(x), x) > 20 and v.encode(x).abs().max() < 8

@pytest.mark.parametrize("name, size", [("latent128", 128), ("latent256", 256)])
def test_shipped_models_draw_what_they_are_asked_for(name, size):
    from fashiondiff.latent import fixed_prompts, judged
    from fashiondiff.photos import class_ids
    from fashiondiff.text import adherence, load_judge
    paint, judge, asked = Painter(name, "cpu"), load_judge(), {k: v for k, v in fixed_prompts.items() if v[0] in ("Tshirts", "Shirts", "Handbags", "Sports Shoes")}
    x = paint(list(asked), steps=10); assert x.shape == (32, 3, size, size)
    articles, colours = zip(*asked.values()); right = adherence(judge, judged(to_uint8(x)), class_ids(articles, judge.articles), class_ids(colours, judge.colours))
    assert right["both"] > .5, right
    assert {"recognised", "minutes", "hardware", "date", "data", "autoencoder"} <= set(paint.card) and find_model(name).parent.name == "weights"

class Hub(http.server.BaseHTTPRequestHandler):
    "A hub that has one model"
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body):
        data = self.server.file.read_bytes() if self.path == "/somebody/small/resolve/main/model.safetensors" else None
        self.send_response(404 if data is None else 200)
        if data is not None: self.send_header("ETag", '"abc"'); self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(data or b""))); self.end_headers()
        if body and data: self.wfile.write(data)
    def log_message(self, *_): pass

def test_a_model_from_the_hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub); server.file = shipped_files()["tiny"]; threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "from fashiondiff.training import load_model, CheckpointError\nprint(load_model('hub:somebody/small').config.preset)\ntry: load_model('hub:somebody/else')\nexcept CheckpointError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1"), timeout=120); server.shutdown()
    assert done.stdout.splitlines()[0] == "tiny" and "hub:somebody/else is not to be had" in done.stdout, done.stderr

def test_diffusers_draws_the_same_picture(paint, tmp_path):
    from diffusers import DiffusionPipeline
    from fashiondiff.hub import save_pipeline
    folder = save_pipeline(paint, tmp_path / "pipe"); pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True); pipe.set_progress_bar_config(disable=True)
    for how in (dict(negative="", scale=2.), dict(negative="a bag", scale=3.)):
        theirs = pipe(["a red shirt", "a blue bag"], how["negative"], 12, how["scale"], seed=4, output_type="pt").images; ours = paint(["a red shirt", "a blue bag"], steps=12, guidance_scale=how["scale"], negative_prompt=how["negative"], seed=4)
        assert (theirs - ours).abs().max() < 1e-3 and (ours[0] - ours[1]).abs().max() > .01
    noise = torch.randn(1, 4, 8, 8, generator=rng(1)); assert torch.equal(pipe("a bag", latents=noise, num_inference_steps=2, output_type="pt").images, pipe("a bag", latents=noise, seed=9, num_inference_steps=2, output_type="pt").images)
    card = (folder / "README.md").read_text(); assert card.startswith("---\n") and "pipeline_tag: text-to-image" in card and "latent64" in card
