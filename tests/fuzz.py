"""A thousand files from a stranger: `python tests/fuzz.py [CASES] [SEED]`.

Every case is a file of ours with something wrong in it, given to a command in a process of its own (forked from this one, so that imports are paid once).
It has to be opened, or refused in a line that names it: no traceback, no crash, no hang, and not a gigabyte more memory than doing nothing takes."""
import collections, copy, gzip, io, json, math, os, pickle, random, shutil, signal, struct, sys, tempfile, time, warnings, zipfile, zlib
os.environ["OMP_NUM_THREADS"] = "1"                            # a process with threads must not be forked
from pathlib import Path
import torch
from PIL import Image
from fashiondiff import commands
from fashiondiff.data import Batches, sample_data
from fashiondiff.evaluation import read_images
from fashiondiff.training import Trainer, fit, make_accelerator, make_config, save_weights
from fashiondiff.vae import VAE, load_vae, save_vae
import torch._dynamo                                           # PyTorch's optimisers ask for it in every process

SECONDS, MEGABYTES = 20, 1000
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")

def originals(folder):
    "One good file of every kind"
    config = make_config("tiny", dataset="sample", base_channels=8, batch_size=10, steps=100, timesteps=10, lr_warmup=0, mixed_precision="no")
    trainer = Trainer(config, Batches(*sample_data(), 10), make_accelerator("cpu"))
    for log in fit(trainer, folder / "run", log_steps=1):
        if log.step == 3: break
    save_weights(trainer.averaged, config, folder / "w.safetensors", note="a test"); save_weights(trainer.averaged, config, folder / "b.safetensors", 8)
    save_vae(VAE(widths=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(1, 1)), folder / "v.safetensors", 8)
    Image.fromarray(sample_data()[0][0, 0].numpy()).resize((60, 50)).save(folder / "a.png")
    idx = [struct.pack(">IIII", 2051, 60000, 28, 28) + bytes(1000), struct.pack(">II", 2049, 60000) + bytes(1000)]
    return dict(pth=(folder / "run/checkpoint_last.pth").read_bytes(), log=(folder / "run/log.csv").read_bytes(), safetensors=(folder / "w.safetensors").read_bytes(), bytes=(folder / "b.safetensors").read_bytes(), vae=(folder / "v.safetensors").read_bytes(), png=(folder / "a.png").read_bytes(), idx=idx)

def spoil(data, r):
    "Bytes with something wrong"
    data, i, n = bytearray(data), r.randrange(len(data)), r.choice((1, 1, 2, 4, 8, 64, 4096))
    how = r.randrange(7)
    if how == 0: del data[i:]
    elif how == 1: data[i:i + n] = r.randbytes(n)
    elif how == 2: data[i] ^= 1 << r.randrange(8)
    elif how == 3: del data[i:i + n]
    elif how == 4: data[i:i] = data[max(0, i - n):i] + r.randbytes(1)
    elif how == 5: data[i:i + 4] = r.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
    else: data = bytearray(r.randbytes(n))
    return bytes(data)

def archive(members, packed=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")                         # of names that are there twice
        for name, data in members: z.writestr(name, data)
    return out.getvalue()

def inside(data, r):
    "An archive whose checksums are right and whose contents are not"
    with zipfile.ZipFile(io.BytesIO(data)) as z: members = [(n, z.read(n)) for n in z.namelist()]
    i = 0 if r.random() < .8 else r.randrange(len(members))
    name, content = members[i]
    how = r.randrange(6)
    if how == 0: del members[i]
    elif how == 1: members[i] = ("../" * r.randrange(1, 9) + "evil", content)
    elif how == 2: members.append((name, spoil(content, r)))
    else: members[i] = (name, spoil(content, r))
    return archive(members)

def odd_value(r):
    return r.choice((None, True, 0, -1, 3, 10**6, 10**12, 2**63, 10**400, .5, -1e308, math.inf, math.nan, "", "x" * 1000, "../../etc/passwd", "\0", b"x", [], [1] * 50, [10**9], [[]], {}, {"a": 1},
                     torch.zeros(0), torch.zeros(()), torch.zeros(3, 3), torch.zeros(1).expand(50_000, 50_000), torch.full((8,), math.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(4, dtype=torch.int64)))

def change(tree, r, value):
    "A nest of dicts and lists with one place changed"
    tree = copy.copy(tree)
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    if not keys: return value
    k = r.choice(list(keys)); below = tree[k]
    if isinstance(below, (dict, list)) and below and r.random() < .9: tree[k] = change(below, r, value)
    elif isinstance(tree, dict) and r.random() < .1: del tree[k]
    elif isinstance(tree, dict) and r.random() < .1: tree[r.choice(("unknown", 0, None, "x" * 100, (1,)))] = value
    else: tree[k] = value
    return tree

def saved(state):
    out = io.BytesIO(); torch.save(state, out); return out.getvalue()

def values(data, r):
    "A checkpoint in which one value is another"
    return saved(change(torch.load(io.BytesIO(data), weights_only=True), r, odd_value(r)))

def odd_config(config, r):
    value = odd_value(r)
    while isinstance(value, torch.Tensor): value = odd_value(r)
    return r.choice((value, [], "text", 7)) if r.random() < .05 else change(config, r, value)

def configs(data, r):
    state = torch.load(io.BytesIO(data), weights_only=True)
    return saved(state | dict(config=odd_config(state["config"], r)))

def with_header(data, change):
    n, = struct.unpack("<Q", data[:8]); header = change(data[8:8 + n])
    return struct.pack("<Q", len(header)) + header + data[8 + n:]

def weights(data, r):
    if r.random() < .4: return spoil(data, r)
    if r.random() < .3: return with_header(data, lambda h: spoil(h, r))
    def changed(h):
        h = json.loads(h); main = "vae" if "vae" in h["__metadata__"] else "config"; config = json.loads(h["__metadata__"][main])
        if r.random() < (.8 if main == "config" else .5):
            text = json.dumps(odd_config(config, r), default=str, skipkeys=True) if r.random() < .9 else r.choice(("[" * 100_000, "1" * 5000, "", "null", "{"))
            h["__metadata__"][main] = text
        else: h = change(h, r, r.choice((None, 1, "F4", "BOOL", [0, 10**15], [10**9, 10**9], {}, "x")))
        return json.dumps(h, default=str, skipkeys=True).encode()
    return with_header(data, changed)

class Reduce:
    "An object whose pickle says: call this"
    def __init__(self, *call): self.call = call
    def __reduce__(self): return self.call

def evil(data, r, canary):
    "Files that were made to do harm"
    state = torch.load(io.BytesIO(data), weights_only=True)
    with zipfile.ZipFile(io.BytesIO(data)) as z: members = [(n, z.read(n)) for n in z.namelist()]
    calls = [(os.mkdir, (str(canary),)), (eval, (f"__import__('os').mkdir({str(canary)!r})",)), (bytearray, (4 * 10**9,)), (collections.Counter, ("x" * 9,)), (torch.zeros, (50_000, 50_000)), (torch._utils._rebuild_tensor_v2, (torch.zeros(1).untyped_storage(), 0, (10**6, 10**6), (0, 0), False, collections.OrderedDict()))]
    made = [lambda: saved(state | dict(ema=Reduce(*call))) for call in calls]
    made += [lambda: pickle.dumps(state | dict(ema=Reduce(*calls[r.randrange(3)])), 2), lambda: archive([(n, bytes(10**9) if n.endswith("/0") else d) for n, d in members], zipfile.ZIP_DEFLATED),
             lambda: archive([("../../../../x", b"x"), *members]), lambda: archive([*members, ("archive/constants.pkl", members[0][1])])]
    k = r.randrange(len(made))
    if k < len(calls): call = calls[k]; return saved(state | dict(ema=Reduce(*call)))
    return made[k]()

def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def pictures(data, r):
    if r.random() < .5: return spoil(data, r)
    size = r.choice(((0, 5), (28, 28), (10**5, 10**5), (12_000, 12_000), (2**31 - 1, 1), (1, 2**20)))
    head = struct.pack(">IIBBBBB", *size, r.choice((1, 2, 4, 8, 16, 3)), r.choice((0, 2, 3, 4, 6, 1, 9)), 0, 0, r.choice((0, 1, 2)))
    body = zlib.compress(bytes(r.choice((0, 100, 10**6, 2 * 10**8))), 9 if r.random() < .5 else 1)
    extra = r.choice((b"", chunk(b"tEXt", b"a\0" + bytes(1000)), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))), chunk(b"PLTE", b"abc"), chunk(b"tRNS", b"a"), chunk(b"acTL", b"\xff" * 8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + (chunk(b"IDAT", body) if r.random() < .9 else b"") + chunk(b"IEND", b"")

def picture_command(folder):
    with commands._plain_errors(): read_images(folder, least=1)

def autoencoder_command(path):
    with commands._plain_errors(): load_vae(path)

RESUME = ["--resume", "--device", "cpu", "--wandb", "disabled", "--sample_epochs", "0", "--max_minutes", "0.00001"]

def case(kind, good, folder, r, canary):
    "Write the file of a case; returns what to run, and the name that an error has to mention"
    if kind == "png": (folder / "a.png").write_bytes(pictures(good["png"], r)); return (lambda: picture_command(folder)), "a.png"
    if kind == "idx":
        which = r.randrange(2); packed = r.random() < .5
        for i, n in enumerate(NAMES):
            data = spoil(good["idx"][i], r) if i == which else good["idx"][i]
            if packed: data = spoil(gzip.compress(data), r) if i == which and r.random() < .7 else gzip.compress(bytes(3 * 10**8) if r.random() < .05 else data)
            (folder / (n + ".gz" * packed)).write_bytes(data)
        return (lambda: commands.train_main(["--data", str(folder), "--dataset", "fashion_mnist", "--device", "cpu", "--wandb", "disabled", "--out", str(folder / "run")])), "-ubyte"
    name = "w.safetensors" if kind in ("safetensors", "bytes", "vae") else "checkpoint_last.pth"
    make = dict(pth=spoil, inside=inside, values=values, config=configs, safetensors=weights, bytes=weights, vae=weights, evil=lambda d, r: evil(d, r, canary), log=lambda d, r: d)[kind]
    (folder / name).write_bytes(make(good[kind if name == "w.safetensors" else "pth"], r))
    if kind == "vae": return (lambda: autoencoder_command(folder / name)), name
    if kind == "log": (folder / "log.csv").write_bytes(spoil(good["log"], r))
    if kind == "log" or name.endswith(".pth") and r.random() < .5: return (lambda: commands.train_main([*RESUME, "--out", str(folder)])), "log.csv" if kind == "log" else name
    return (lambda: commands.sample_main(["--model", str(folder / name), "--n_samples", "0", "--device", "cpu"])), name

def child(run, said):
    fd = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600); os.dup2(fd, 1); os.dup2(fd, 2)
    sys.stdout, sys.stderr = (open(i, "w", buffering=1, closefd=False) for i in (1, 2))
    code = 0
    try: run()
    except SystemExit as e: code = e.code or 0
    except BaseException: import traceback; traceback.print_exc(); code = 1
    sys.stdout.flush(); sys.stderr.flush(); os._exit(code)

def attempt(run, said):
    "Run in a process of its own: exit code (negative: a signal), seconds, megabytes, what it said"
    t0 = time.monotonic(); pid = os.fork()
    if not pid: child(run, said)
    while not (done := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() - t0 > SECONDS: os.kill(pid, signal.SIGKILL)
        time.sleep(.002)
    return os.waitstatus_to_exitcode(done[1]), time.monotonic() - t0, done[2].ru_maxrss / (2**20 if sys.platform == "darwin" else 1024), Path(said).read_text(errors="replace")

def verdict(code, seconds, extra, text, name):
    "What is wrong with the outcome of a case; nothing if all is well"
    errors = [l for l in text.splitlines() if l.startswith("fashiondiff: ")]
    if seconds > SECONDS: return "it hangs"
    if code not in (0, 2) or "Traceback" in text: return f"it crashes ({code})"
    if extra > MEGABYTES: return f"it takes {extra:.0f} MB"
    if code == 2 and "--n_samples 0" not in text and not (1 <= len(errors) <= 2 and len(text.splitlines()) == len(errors) and name in text): return "its error is not one line that names the file"

KINDS = ("pth", "inside", "values", "config", "safetensors", "bytes", "vae", "evil", "log", "idx", "png")

def main(cases=1000, seed=0):
    folder = Path(tempfile.mkdtemp()); canary, bad, loaded, worst = folder / "pwned", [], 0, 0
    good = originals(folder); base = attempt(lambda: None, folder / "said")[2]
    try:
        for i in range(cases):
            r, kind, place = random.Random(seed * 10**6 + i), KINDS[i % len(KINDS)], folder / f"case{i}"; place.mkdir()
            run, name = case(kind, good, place, r, canary)
            code, seconds, memory, text = attempt(run, folder / f"said{i}")
            loaded += code == 0 or "--n_samples 0" in text; worst = max(worst, memory - base)
            if wrong := verdict(code, seconds, memory - base, text, name): bad.append(f"case {i} ({kind}): {wrong}\n{text[-1500:]}")
            if canary.exists(): bad.append(f"case {i} ({kind}): code of the file was executed"); canary.rmdir()
            shutil.rmtree(place)
    finally: shutil.rmtree(folder)
    print(*bad, f"{cases} cases of seed {seed}: {loaded} opened, {cases - loaded - len(bad)} refused, {len(bad)} wrong; at most {worst:.0f} MB more than doing nothing", sep="\n")
    return bool(bad)

if __name__ == "__main__": sys.exit(main(*map(int, sys.argv[1:])))
