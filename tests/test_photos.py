"Colour photographs: their formats, damaged pictures, what is held out, the cache, what is missing, and what is asked for wrongly."
import io, os, pickle, subprocess, sys, warnings
import pyarrow as pa, pyarrow.parquet as pq, pytest, torch, torchvision.datasets
from PIL import Image
from fashiondiff import data, photos
from fashiondiff.data import DataError, LoaderBatches, dataset_classes, load_data
from fashiondiff.photos import Album, PhotoStream, cifar10, draw_photos, fashion_album, fashion_photos, held_out, square, squares
from make_readme import ROOT

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "neither this machine's cache nor its data"
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "cache")); monkeypatch.delenv("FASHIONDIFF_DATA", raising=False)
    photos._read_album.cache_clear()

@pytest.fixture
def drawn(tmp_path): return draw_photos(tmp_path / "shop/photos.parquet", 60)

def rewrite(path, change):
    "the rows of a parquet file, changed"
    rows = pq.read_table(path).to_pylist(); change(rows); pq.write_table(pa.Table.from_pylist(rows), path); return path

def jpeg(image): image.save(f := io.BytesIO(), "JPEG", quality=95); return f.getvalue()

def says(f, *parts):
    "one clear line"
    with pytest.raises(DataError) as e: f()
    assert "\n" not in str(e.value) and all(p in str(e.value) for p in parts), e.value

# what is found where

@pytest.mark.parametrize("layout", ["photos.parquet", "data/train-00000-of-00001-abc.parquet", "a/b/c.parquet"])
def test_a_file_its_folder_and_the_hubs_layout_are_found(tmp_path, layout):
    path = draw_photos(tmp_path / "here" / layout, 20)
    assert len(fashion_album("all", path)) == len(fashion_album("all", tmp_path / "here")) == 20

def test_the_places_are_searched_in_order(tmp_path, monkeypatch):
    draw_photos(tmp_path / "cache/p.parquet", 10); assert len(fashion_album("all")) == 10
    draw_photos(tmp_path / "data/p.parquet", 20); assert len(fashion_album("all")) == 20
    draw_photos(tmp_path / "named/p.parquet", 30); monkeypatch.setenv("FASHIONDIFF_DATA", str(tmp_path / "named")); assert len(fashion_album("all")) == 30
    assert len(fashion_album("all", tmp_path / "data")) == 20

def test_parts_of_a_set_are_one_and_other_files_do_not_disturb(tmp_path):
    for i in range(3): draw_photos(tmp_path / f"set/train-0000{i}-of-00003.parquet", 10, seed=i)
    pq.write_table(pa.table(dict(number=[1])), tmp_path / "set/other.parquet"); (tmp_path / "set/notes.txt").write_text("x")
    assert len(fashion_album("all", tmp_path / "set")) == 30

def test_the_smallest_photos_that_are_large_enough_are_taken(tmp_path):
    for n, side in ((10, 40), (20, 120), (30, 240)): draw_photos(tmp_path / f"sizes/{side}.parquet", n, (side * 3 // 4, side))
    assert [len(fashion_album("all", tmp_path / "sizes", s)) for s in (28, 64, 128, 256)] == [10, 20, 30, 30]

def test_photos_that_are_much_too_small_are_said_to_be(tmp_path):
    path = draw_photos(tmp_path / "p.parquet", 10, (60, 80))
    with warnings.catch_warnings(): warnings.simplefilter("error"); fashion_album("all", path, 96)
    with pytest.warns(UserWarning, match="have 80 pixels at most, and will be blurred at 128"): fashion_album("all", path, 128)

def test_no_picture_makes_another_program_start(drawn, monkeypatch):
    from PIL import EpsImagePlugin
    started = []; monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a) or Image.new("RGB", (60, 80)).im)
    Image.new("RGB", (60, 80)).save(f := io.BytesIO(), "EPS"); rewrite(drawn, lambda rows: rows[3]["image"].update(bytes=f.getvalue()))
    with pytest.warns(UserWarning, match="1 of 60 photos cannot be read"): squares(fashion_album("all", drawn), 32)
    assert not started

class Pooled(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

def test_classes_of_photos_are_trained_and_evaluated_at_their_size(drawn, tmp_path, monkeypatch, capsys):
    from fashiondiff import evaluation
    from fashiondiff.commands import eval_main, train_main
    monkeypatch.setitem(evaluation.extractors, "pooled", Pooled); seen = []; monkeypatch.setattr(photos, "square", lambda image, size=64, fit="pad": seen.append((size, fit)) or square(image, size, fit))
    train_main(f"--preset tiny --dataset fashion_photos --data {drawn} --image_size 28 --channels 3 --fit white --base_channels 16 --batch_size 10 --steps 2 --lr_warmup 1 --timesteps 10 --mixed_precision no --sample_epochs 0 --wandb disabled --device cpu --out {tmp_path / 'run'}".split())
    assert set(seen) == {(28, "white")}
    eval_main(f"--model {tmp_path / 'run'} --dataset fashion_photos --data {drawn} --n_samples 50 --steps 2 --extractors pooled,fmnist --device cpu --out {tmp_path / 'e'}".split())
    said = capsys.readouterr(); assert "| run | pooled | 50 |" in said.out and "not measured: fmnist looks at grey pictures of 28 pixels, not at (3, 28, 28)" in said.err and "| recognised |" not in said.out
    import json
    rows = json.loads((tmp_path / "e/evaluation.json").read_text()); assert [r.get("fd_train", 0) > 0 for r in rows] == [True, True, False] and not any("accuracy" in r for r in rows)

def test_a_large_set_is_mapped_from_disk_and_is_the_same(drawn, monkeypatch):
    small = fashion_album("test", drawn); photos._read_album.cache_clear(); monkeypatch.setattr(photos, "_at_once", 0); large = fashion_album("test", drawn)
    assert (small.ids, small.rows, small.key) == (large.ids, large.rows, large.key)
    assert torch.equal(squares(small, 32)[0], torch.stack([square(large.open(i), 32) for i in range(len(large))]))

def test_the_hub_is_asked_once_and_only_when_nothing_was_named(tmp_path, monkeypatch):
    import datasets
    asked = []
    def load_dataset(name, split): asked.append((name, split)); return datasets.Dataset.from_parquet(str(draw_photos(tmp_path / "elsewhere/x.parquet", 20)), cache_dir=str(tmp_path / "arrow"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    says(lambda: fashion_album("all", tmp_path), "no photos in", "articleType"); assert not asked
    (tmp_path / "elsewhere/x.parquet").unlink(missing_ok=True)
    assert len(fashion_album("all")) == 20 and len(fashion_album("train")) == 18 and asked == [("ashraq/fashion-product-images-small", "train")]
    assert [p.name for p in (tmp_path / "cache").glob("*.parquet*")] == ["fashion_photos.parquet"]

def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets
    def fail(*a, **k): raise ConnectionError("no route\nand a long story")
    monkeypatch.setattr(datasets, "load_dataset", fail)
    says(lambda: load_data("fashion_photos"), "fetching ashraq/fashion-product-images-small failed (no route)", "./data")

# damage

def test_unreadable_photos_are_named_in_one_line_and_left_out(drawn):
    def change(rows):
        rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:300]; rows[7]["image"]["bytes"] = b"no picture"; rows[8]["image"] = None; rows[9]["image"]["bytes"] = None
    rewrite(drawn, change); good = fashion_album("train", drawn)
    for _ in range(2):                                                            # decoded, and from the cache
        with pytest.warns(UserWarning) as said: p = photos.photos("train", drawn, 32)
        assert [str(w.message) for w in said] == ["3 of 54 photos cannot be read and are left out: 1009, 1021, 1024"]
        assert len(p) == 51 == len(p.images) == len(p.rows["articleType"]) and not {1009, 1021, 1024} & set(p.ids)
        assert all(torch.equal(p.images[i], square(good.open(good.ids.index(p.ids[i])), 32)) for i in range(len(p)))

def test_a_warning_names_five_at_most_and_nothing_left_is_an_error(drawn):
    def spoil(first): return lambda rows: [r["image"].update(bytes=b"x") for r in rows[:first]]
    with pytest.warns(UserWarning, match=r"^20 of 60 photos .*: 1000, 1003, 1006, 1009, 1012, …$"): squares(fashion_album("all", rewrite(drawn, spoil(20))), 32)
    says(lambda: squares(fashion_album("all", rewrite(drawn, spoil(60))), 32), "none of the 60 photos can be read")

def test_a_damaged_parquet_file_is_named(drawn):
    for spoiled in (drawn.read_bytes()[:-100], b"", b"PAR1" + bytes(100)):
        drawn.write_bytes(spoiled); says(lambda: fashion_album("all", drawn.parent), str(drawn), "delete it")
    whole = draw_photos(drawn, 60).read_bytes(); drawn.write_bytes(whole[:2000] + bytes(40_000) + whole[42_000:])          # the index is whole, the pages are not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: fashion_photos("train", drawn, 32)
        except DataError as e: assert "\n" not in str(e)

def test_pictures_of_every_mode_become_colour():
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr", "HSV"):
        x = square(Image.new(mode, (30, 40)), 32); assert x.shape == (3, 32, 32) and x.dtype == torch.uint8, mode
    for shape in ((1, 500), (500, 1), (1, 1), (2000, 3)): assert square(Image.new("RGB", shape, "red"), 28).shape == (3, 28, 28)

def test_a_picture_that_would_unpack_without_end_is_left_out(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000); big = [Image.new("RGB", (8, 8)), None]
    def opened(i): return Image.open(io.BytesIO(jpeg(Image.new("RGB", (100, 100)) if i else Image.new("RGB", (8, 8)))))
    with pytest.warns(UserWarning, match="1 of 2 photos cannot be read and are left out: bomb"): assert squares(Album(["small", "bomb"], opened, "k", {}), 32)[1] == [0]

# held out

def test_every_tenth_id_is_held_out_whatever_the_order(drawn):
    train, test = (fashion_album(s, drawn) for s in ("train", "test")); everything = sorted(train.ids + test.ids)
    assert test.ids == everything[9::10] and not set(train.ids) & set(test.ids) and len(everything) == 60
    rewrite(drawn, lambda rows: rows.reverse()); again = fashion_album("test", drawn)
    assert sorted(again.ids) == test.ids and again.ids != test.ids
    rewrite(drawn, lambda rows: rows.extend(rows[:15])); assert set(fashion_album("test", drawn).ids) == set(test.ids)              # twice: on the same side both times
    assert held_out(["b", "a"]) == [False, False] and held_out(range(20)).count(True) == 2

def test_labels_mean_the_same_in_both_splits(drawn):
    names = dataset_classes("fashion_photos", drawn)
    for split in ("train", "test"):
        y, album = load_data("fashion_photos", split, drawn, 32)[1], fashion_album(split, drawn)
        assert [names[i] for i in y] == [photos.typed(v) for v in album.rows["articleType"]]
    x, y = fashion_photos("train", drawn, 32, at_least=10); assert y.bincount(minlength=1).min() > 0
    rewrite(drawn, lambda rows: [r.update(articleType="Hats/Caps") for r in rows[:2]])
    assert "hats_caps" not in photos.photo_classes(drawn, at_least=3) and "hats_caps" in photos.photo_classes(drawn, at_least=2)
    kept, y = fashion_photos("train", drawn, 32, at_least=3); assert len(kept) == len(y) == 52

def test_class_names_are_those_of_the_set_that_a_size_chooses(tmp_path):
    draw_photos(tmp_path / "two/small.parquet", 30, (30, 40)); rewrite(draw_photos(tmp_path / "two/large.parquet", 30, (75, 100)), lambda rows: [r.update(articleType=f"Large {r['articleType']}") for r in rows])
    for size, large in ((32, False), (96, True)):
        names = dataset_classes("fashion_photos", tmp_path / "two", size); y = load_data("fashion_photos", "train", tmp_path / "two", size)[1]
        assert len(names) == 6 == y.max() + 1 and all(n.startswith("large_") == large for n in names)
    assert dataset_classes("celeba:Smiling", size=64) == ("not_smiling", "smiling") and len(dataset_classes("cifar10", size=32)) == 10

# the cache

def test_a_second_load_decodes_nothing_and_gives_the_same(drawn, monkeypatch):
    first = load_data("fashion_photos", data=drawn, size=48)
    monkeypatch.setattr(photos, "square", None); photos._read_album.cache_clear(); again = load_data("fashion_photos", data=drawn, size=48)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])

def test_what_is_cached_depends_on_contents_size_and_fit_not_on_names(drawn, tmp_path):
    count = lambda: len(list((tmp_path / "cache/photos").iterdir()))
    for size, fit in ((32, "pad"), (33, "pad"), (32, "squash")): photos.photos("train", drawn, size, fit)
    assert count() == 3; moved = drawn.rename(drawn.with_name("other.parquet")); photos.photos("train", moved, 32); os.utime(moved); photos.photos("train", moved, 32); assert count() == 3
    rewrite(moved, lambda rows: rows[0].update(image=rows[1]["image"])); x = photos.photos("train", moved, 32).images; assert count() == 4 and torch.equal(x[0], x[1])

def test_a_cache_that_is_not_whole_is_not_believed(drawn, tmp_path):
    right = photos.photos("train", drawn, 32).images.clone(); (folder,) = (tmp_path / "cache/photos").iterdir()
    def spoil_size(): (folder / "squares").write_bytes(b"\0" * 100)
    def spoil_index(): (folder / "kept.json").write_text("[1, 2")
    def lose_index(): (folder / "kept.json").unlink()
    for spoil in (spoil_size, spoil_index, lose_index): spoil(); assert torch.equal(photos.photos("train", drawn, 32).images, right)
    assert [p.name for p in (tmp_path / "cache/photos").iterdir()] == [folder.name] and sorted(p.name for p in folder.iterdir()) == ["kept.json", "squares"]

def test_an_interrupted_load_leaves_nothing(drawn, tmp_path, monkeypatch):
    done = []
    def stop(*a): done.append(1); raise KeyboardInterrupt if len(done) > 20 else OSError
    monkeypatch.setattr(photos, "square", stop)
    with pytest.raises(KeyboardInterrupt): photos.photos("train", drawn, 32)
    assert not list((tmp_path / "cache/photos").iterdir())

def test_without_a_place_to_write_it_works_in_memory(drawn, tmp_path, monkeypatch):
    right = photos.photos("train", drawn, 32).images.clone()
    (tmp_path / "a file").write_text("x"); monkeypatch.setenv("FASHIONDIFF_CACHE", str(tmp_path / "a file"))
    assert torch.equal(photos.photos("train", drawn, 32).images, right)

def test_images_from_the_cache_may_be_changed_without_changing_it(drawn):
    x = photos.photos("train", drawn, 32).images; was = x.clone(); x.zero_()
    assert torch.equal(photos.photos("train", drawn, 32).images, was)

# CIFAR-10 and CelebA in the form of the originals

def unchecked(monkeypatch):
    "torchvision knows the checksums of the originals; ours are others"
    C = torchvision.datasets.CIFAR10
    for name in ("train_list", "test_list"): monkeypatch.setattr(C, name, [[f, None] for f, _ in getattr(C, name)])
    monkeypatch.setattr(C, "meta", C.meta | dict(md5=None)); F = torchvision.datasets.CelebA; monkeypatch.setattr(F, "file_list", [(i, None, n) for i, _, n in F.file_list])

def write_cifar10(root):
    base = root / "cifar-10-batches-py"; base.mkdir(parents=True); g = torch.Generator().manual_seed(0); pixels = torch.randint(256, (60, 3072), dtype=torch.uint8, generator=g)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = slice(10 * i, 10 * i + 10); (base / name).write_bytes(pickle.dumps(dict(data=pixels[part].numpy(), labels=list(range(10)))))
    (base / "batches.meta").write_bytes(pickle.dumps(dict(label_names=list(photos.cifar10_classes))))
    return pixels.view(-1, 3, 32, 32)

def test_cifar10_in_the_original_format(tmp_path, monkeypatch):
    pixels = write_cifar10(tmp_path / "c"); says(lambda: cifar10("train", tmp_path / "c"), "cifar-10-batches-py is not complete, or damaged")
    unchecked(monkeypatch)
    for split, part in (("train", slice(0, 50)), ("test", slice(50, 60))):
        x, y = load_data("cifar10", split, tmp_path / "c"); assert torch.equal(x, pixels[part]) and x.is_contiguous() and y.dtype == torch.int64 and y[:10].tolist() == list(range(10))
    (tmp_path / "c/cifar-10-batches-py/data_batch_3").unlink(); says(lambda: cifar10("train", tmp_path / "c"), "not complete, or damaged")

def test_cifar10_from_parquet_files_as_on_the_hub(tmp_path):
    for split, n in (("train", 30), ("test", 10)):
        path = tmp_path / f"hub/plain_text/{split}-00000-of-00001.parquet"; path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(dict(img=[dict(bytes=jpeg(Image.new("RGB", (32, 32), (5 * i, 9, 9))), path=None) for i in range(n)], label=[i % 10 for i in range(n)])), path)
    x, y = load_data("cifar10", "train", tmp_path / "hub"); assert x.shape == (30, 3, 32, 32) and y.tolist() == [i % 10 for i in range(30)] and (x[:, 0].float().mean((1, 2)) - 5 * torch.arange(30)).abs().max() < 3
    assert len(cifar10("test", tmp_path / "hub")[0]) == 10 and load_data("cifar10", "test", tmp_path / "hub", 32)[0].shape[-1] == 32
    rewrite(path := tmp_path / "hub/plain_text/test-00000-of-00001.parquet", lambda rows: rows[4]["img"].update(bytes=b"x"))
    with pytest.warns(UserWarning, match="1 of 10 photos"): assert cifar10("test", tmp_path / "hub")[1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    path.unlink(); says(lambda: cifar10("test", tmp_path / "hub"), "no CIFAR-10 in")

def write_celeba(root, n=10):
    base = root / "celeba"; (base / "img_align_celeba").mkdir(parents=True); names = [f"{i + 1:06d}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        x = Image.new("RGB", (178, 218), (0, 0, 200)); x.paste((200, 10 * i, 0), photos._face); x.save(base / "img_align_celeba" / name, quality=100, subsampling=0)
    lines = lambda rows, *head: "\n".join([*head, *(" ".join(map(str, r)) for r in rows)]) + "\n"
    (base / "list_attr_celeba.txt").write_text(lines([(m, " 1" if i % 3 == 0 else "-1", -1) for i, m in enumerate(names)], str(n), "Smiling Young "))
    (base / "list_eval_partition.txt").write_text(lines([(m, min(2, i * 3 // n)) for i, m in enumerate(names)]))
    (base / "identity_CelebA.txt").write_text(lines([(m, i) for i, m in enumerate(names)]))
    (base / "list_bbox_celeba.txt").write_text(lines([(m, 1, 2, 3, 4) for m in names], str(n), "image_id x_1 y_1 width height"))
    (base / "list_landmarks_align_celeba.txt").write_text(lines([(m, *range(10)) for m in names], str(n), " ".join("abcdefghij")))

def test_celeba_in_the_original_format(tmp_path, monkeypatch):
    write_celeba(tmp_path / "f"); says(lambda: load_data("celeba", "train", tmp_path / "f"), "not complete, or damaged")
    unchecked(monkeypatch)
    for size in (None, 32, 64, 128):
        x, y = load_data("celeba", "train", tmp_path / "f", size); assert x.shape == (4, 3, size or 64, size or 64) and y.tolist() == [0] * 4
        assert (x[:, 0].float() - 200).abs().max() < 30 and x[:, 2].float().mean() < 20, "the blue frame is cut away"
    assert load_data("celeba:Smiling", "train", tmp_path / "f")[1].tolist() == [1, 0, 0, 1] and load_data("celeba:Young", "test", tmp_path / "f")[1].tolist() == [0] * 3
    assert set(photos.celeba_album("all", tmp_path / "f").rows) == {"Smiling", "Young"}
    says(lambda: load_data("celeba:Smilin", "train", tmp_path / "f"), "unknown attribute 'Smilin': did you mean 'Smiling'?"); says(lambda: load_data("celeba", "train", tmp_path / "f", 129), "from 28 to 128")
    says(lambda: load_data("celeba", "dev", tmp_path / "f"), "train, valid, test or all"); says(lambda: load_data("celeba", data=tmp_path), "no celeba/img_align_celeba")
    (tmp_path / "f/celeba/img_align_celeba/000002.jpg").write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 of 4 photos cannot be read and are left out: 000002.jpg"): assert load_data("celeba:Smiling", "train", tmp_path / "f")[1].tolist() == [1, 0, 1]

def test_downloads_that_fail_are_one_line(monkeypatch):
    def fail(*a, **k): raise OSError("tests do not use the network")
    for cls in ("CIFAR10", "CelebA"): monkeypatch.setattr(getattr(torchvision.datasets, cls), "download", fail)
    for name in ("cifar10", "celeba"): says(lambda: load_data(name), "nowhere on this machine, and downloading it failed")

# streams

def test_a_stream_gives_the_batches_of_the_squares_with_workers_too(drawn):
    album = fashion_album("train", drawn); y = photos.class_ids(album.rows["articleType"], photos.photo_classes(drawn)); x = squares(album, 40)[0]
    stream = PhotoStream(album, y, 40); direct = data.Batches(x, y, 16, seed=7)
    for workers in (0, 2):
        loaded = LoaderBatches(stream, 16, seed=7, num_workers=workers)
        for step in (0, 1, 2, 4): assert all(torch.equal(a, b) for a, b in zip(loaded.at(step), direct.at(step)))
    copy = pickle.loads(pickle.dumps(stream)); assert torch.equal(copy[5][0], stream[5][0]) and copy[5][1] == stream[5][1]

def test_a_stream_passes_over_what_it_cannot_read_and_says_so_once(drawn):
    rewrite(drawn, lambda rows: [r["image"].update(bytes=b"x") for r in rows[4:6]]); stream = PhotoStream(fashion_album("all", drawn), size=32)
    with pytest.warns(UserWarning) as said: a = stream[4][0]; b = stream[5][0]; c = stream[6][0]
    assert torch.equal(a, c) and torch.equal(b, c) and [str(w.message) for w in said] == [f"photo {n} cannot be read: another one takes its place ({i} so far)" for i, n in enumerate((1012, 1015), 1)]
    rewrite(drawn, lambda rows: [r["image"].update(bytes=b"x") for r in rows]); empty = PhotoStream(fashion_album("all", drawn), size=32)
    with warnings.catch_warnings(): warnings.simplefilter("ignore"); says(lambda: empty[0], "none of the 60 photos can be read")

# what is asked for wrongly, and what is not installed

@pytest.mark.parametrize("size", [0, 27, 257, -64, 64.0, "64", True, 10**9])
def test_a_size_that_is_none_is_one_line(drawn, size):
    for f in (lambda: load_data("fashion_photos", "train", drawn, size), lambda: photos.photos("train", drawn, size), lambda: PhotoStream(Album([], None, "", {}), size=size)): says(f, "from 28 to 256")

def test_wrong_names_are_one_line(drawn):
    says(lambda: load_data("fashion_fotos"), "unknown data set 'fashion_fotos'", "fashion_photos", "cifar10", "celeba")
    says(lambda: load_data("fashion_photos:articleTyp", data=drawn), "unknown column 'articleTyp': did you mean 'articleType'?"); says(lambda: dataset_classes("fashion_photos:x", drawn), "it is one of (id, gender")
    says(lambda: load_data("cifar10:colour"), "without 'colour'"); says(lambda: load_data("fashion_photos", "valid", drawn), "train, test or all"); says(lambda: cifar10("valid"), "train or test")
    says(lambda: photos.photos("train", drawn, fit="crop"), "unknown fit 'crop'"); says(lambda: cifar10(size=64), "32 pixels only"); says(lambda: load_data("fashion_mnist", size=32), "28 pixels only"); says(lambda: load_data("sample", size=0), "28 pixels only")
    says(lambda: fashion_photos("train", drawn, at_least=1000), "no class has 1000 photos"); says(lambda: load_data("fashion_photos", data=drawn.with_name("none")), "no photos in")

@pytest.mark.parametrize("missing", ["datasets", "pyarrow"])
def test_a_missing_library_is_one_line_and_breaks_nothing_else(drawn, missing):
    code = f"""import sys; sys.modules[{missing!r}] = None
from fashiondiff.data import DataError, load_data, dataset_classes
assert len(load_data('sample')[0]) == 1000 and dataset_classes('cifar10')[3] == 'cat'
import fashiondiff.photos
try: load_data('fashion_photos', data={str(drawn)!r})
except DataError as e: print(e)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{missing} is missing: pip install 'fashiondiff[photos]'", done.stdout

def test_the_module_comes_only_when_a_name_asks_for_it():
    code = "import sys; from fashiondiff.data import load_data, dataset_classes; load_data('sample'); assert 'fashiondiff.photos' not in sys.modules; dataset_classes('celeba'); assert 'fashiondiff.photos' in sys.modules and 'datasets' not in sys.modules and 'torchvision' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True); assert done.returncode == 0, done.stderr

def test_the_extra_is_what_the_code_asks_for():
    settings = (ROOT / "settings.ini").read_text(); extra = settings.split("photos_requirements = ")[1].split("\n")[0].split()
    assert {e.split(">=")[0] for e in extra} == {"datasets", "pyarrow"} and set(extra) <= set(settings.split("dev_requirements = ")[1].split("\n")[0].split())

@pytest.fixture
def mine(tmp_path):
    "Thirty pictures in folders, and what else lies about in folders"
    for i in range(30): (f := tmp_path / "mine" / ("b socks", "a hats", "shoes/old")[i % 3] / f"{i:02d}.png").parent.mkdir(parents=True, exist_ok=True); photos.draw_photo(i % 6, "Red", (40, 40), seed=i).save(f)
    root = tmp_path / "mine"; (root / "list.txt").write_text("x"); (root / "a hats" / "._00.png").write_bytes(b"x"); (root / ".cache").mkdir(); (root / ".cache" / "0.png").write_bytes(b"x")
    return root

def test_pictures_of_ones_own_are_found_and_folders_are_classes(mine, monkeypatch):
    import warnings
    with warnings.catch_warnings(): warnings.simplefilter("error"); x, y = load_data("folder", "train", mine, 32)
    assert dataset_classes("folder", mine) == ("a_hats", "b_socks", "shoes") and (x.shape, y.bincount().tolist()) == ((27, 3, 32, 32), [9, 9, 9])
    names = photos.folder_album("all", mine).ids; assert names == sorted(names) and "shoes/old/02.png" in names and photos.folder_album("test", mine).ids == names[9::10]
    monkeypatch.setenv("FASHIONDIFF_DATA", str(mine)); assert torch.equal(load_data("folder", "train", size=32)[0], x)
    says(lambda: load_data("folder", "valid", mine), "train, test or all"); says(lambda: load_data("folder", data=mine, size=20), "28")
    for f in (mine / "a hats").glob("??.png"): f.rename(mine / f.name)                                                      # without a folder
    assert dataset_classes("folder", mine) == ("b_socks", "picture", "shoes")

def test_folders_of_every_kind_of_trouble(mine, tmp_path):
    (mine / "A Hats").mkdir(); next((mine / "a hats").glob("[0-9]*.png")).rename(mine / "A Hats" / "x.PNG"); assert dataset_classes("folder", mine) == ("a_hats", "b_socks", "shoes")               # one class, written in two ways
    (tmp_path / "far").mkdir(); photos.draw_photo(0, "Blue").save(tmp_path / "far" / "1.png"); (mine / "linked").symlink_to(tmp_path / "far"); (mine / "linked" / "round").symlink_to(mine)
    (mine / "gone.png").symlink_to(tmp_path / "nowhere"); os.mkfifo(mine / "pipe.png")
    assert dataset_classes("folder", mine) == ("a_hats", "b_socks", "linked", "shoes") and len(photos.folder_album("all", mine)) == 31
    few = tmp_path / "few"; few.mkdir(); photos.draw_photo(0, "Blue", (32, 32)).save(few / "1.bmp"); says(lambda: load_data("folder", "test", few), "1 pictures: of fewer than ten none is held out"); x, y = load_data("folder", data=few, size=32)
    other = tmp_path / "other"; other.mkdir(); photos.draw_photo(0, "Red", (32, 32)).save(other / "1.bmp"); os.utime(other / "1.bmp", ns=2 * ((few / "1.bmp").stat().st_mtime_ns,)); assert not torch.equal(load_data("folder", data=other, size=32)[0], x)
    says(lambda: load_data("folder", data=few / "1.bmp"), "is no folder")
    try: (few / b"\xff".decode("utf-8", "surrogateescape")).with_suffix(".png").write_bytes(b"x")
    except OSError: return                                                                                                       # a file system that takes no such names
    says(lambda: load_data("folder", data=few), "is not a name in UTF-8")

def test_what_is_transparent_is_white(tmp_path):
    im = Image.new("RGBA", (40, 40), (0, 0, 0, 0)); im.paste((0, 0, 0, 255), (10, 10, 30, 30)); im.save(tmp_path / "a.png")
    x = square(photos.folder_album("all", tmp_path).open(0), 40); assert x[:, 2, 2].tolist() == [255] * 3 and x[:, 20, 20].tolist() == [0] * 3

def test_a_photo_from_a_camera_held_sideways_stands_upright(tmp_path):
    im = Image.new("RGB", (40, 40), "white"); im.paste("red", (0, 0, 40, 20)); exif = Image.Exif(); exif[0x0112] = 6; im.save(tmp_path / "a.jpg", exif=exif)      # to be turned to the right
    x = square(photos.folder_album("all", tmp_path).open(0), 40).float(); assert x[1, :, 30].mean() < 40 and x[1, :, 10].mean() > 215

def test_a_model_of_ones_own_classes(mine, tmp_path, capsys):
    from fashiondiff.commands import sample_main, train_main
    train_main(f"--preset cifar10_tiny --dataset folder --data {mine} --num_classes 3 --base_channels 16 --batch_size 9 --steps 2 --mixed_precision no --sample_epochs 0 --wandb disabled --device cpu --out {tmp_path / 'run'}".split())
    sample_main(f"--model {tmp_path / 'run'} --class 2 --n_samples 3 --steps 2 --device cpu --save_individual --out {tmp_path / 's'}".split())
    assert Image.open(tmp_path / "s/individual/2_002.png").size == (32, 32)
    with pytest.raises(SystemExit): train_main(f"--preset cifar10_tiny --dataset folder --data {mine} --num_classes 2 --batch_size 9 --device cpu --wandb disabled --out {tmp_path / 'r2'}".split())
    assert "num_classes = 2: the data have a label 2" in capsys.readouterr().err
