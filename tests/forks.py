"Real processes that cost no imports: each is forked from a server that has imported everything and computed nothing."
import math, multiprocessing, os, resource, sys, time, traceback
from pathlib import Path

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["fashiondiff.commands", "accelerate", "torch._dynamo", "matplotlib.pyplot", "torchvision.transforms.v2", "ipywidgets", "transformers", "diffusers", "nbdev.test"])

TINY = ["--dataset", "sample", "--device", "cpu", "--wandb", "disabled", "--preset", "tiny", "--base_channels", "16", "--batch_size", "20", "--timesteps", "5",
        "--lr_warmup", "5", "--mixed_precision", "no", "--sample_epochs", "0", "--checkpoint_epochs", "0", "--log_steps", "1"]

def start(f, *args):
    p = server.Process(target=f, args=args); p.start()
    return p

def end(p, seconds=120):
    "The exit code of a process, which must not hang"
    p.join(seconds)
    if p.exitcode is None: p.kill(); p.join(); raise AssertionError("it hangs")
    return p.exitcode

def wait_for(condition, seconds=60):
    "Poll until something is true, and return it"
    t0 = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - t0 > seconds: raise AssertionError("it never happened")
        time.sleep(.002)
    return found

def speak_to(said):
    "From here on all that this process says goes to a file"
    fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(fd, 1); os.dup2(fd, 2); sys.stdout, sys.stderr = (open(i, "w", buffering=1, closefd=False) for i in (1, 2))

def command(main, argv, said, before=None, args=()):
    "One of the commands, as from a shell: what it says goes to a file, its exit code is the process's"
    speak_to(said); code = 0
    try:
        if before: before(*args)
        from fashiondiff import commands
        getattr(commands, main)(list(map(str, argv)))
    except SystemExit as e: code = e.code or 0
    except BaseException: traceback.print_exc(); code = 1
    sys.stdout.flush(); sys.stderr.flush(); os._exit(code)

def train(out, *flags, said=None, before=None, args=()):
    "`fashiondiff_train` on a small scale, in a process of its own"
    return start(command, "train_main", [*TINY, "--out", out, *flags], said or f"{out}.txt", before, args)

def notebook(path, said):
    "A notebook from top to bottom; cells marked `#| slow` keep their stored outputs"
    from nbdev.test import test_nb
    speak_to(said); sys.exit(not test_nb(Path(path), skip_flags=["slow"])[0])

def traced(out, trace, steps, minutes):
    "Train or go on, and note every step in a file"
    from fashiondiff.data import Batches, sample_data
    from fashiondiff.training import Trainer, fit, make_accelerator, make_config
    config = make_config("tiny", dataset="sample", base_channels=16, batch_size=20, steps=steps, lr_warmup=5, mixed_precision="no")
    trainer = Trainer(config, Batches(*sample_data(), config.batch_size, config.seed), make_accelerator("cpu"))
    with open(trace, "a") as f:
        for log in fit(trainer, out, resuming=True, checkpoint_epochs=0, checkpoint_minutes=minutes): print(log.step, file=f, flush=True)

# what may happen to a process before it begins

def small_disk(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def nobody():
    if os.getuid() == 0: os.setuid(65534)

def clock_set_back():
    "Every look at the clock finds it a day earlier"
    now = [time.time()]
    def earlier(): now[0] -= 86400; return now[0]
    time.time = earlier

def infinite_image(step):
    "One batch is not what it should be"
    from fashiondiff.data import Batches
    at = Batches.at
    def broken(self, i): x, y = at(self, i); return (x * math.inf if i + 1 == step else x), y
    Batches.at = broken
