"Larger networks and images: blocks computed twice, batches in parts, and the presets that need them."
import copy, math
from dataclasses import replace
import pytest, torch
import fashiondiff.commands as commands
from fashiondiff.data import Batches, rng, sample_data
from fashiondiff.schedule import resolution_shift
from fashiondiff.training import ConfigError, Trainer, build, differences, make_accelerator, make_config, presets, recompute, resume, save_checkpoint, schedule_of
from fashiondiff.unet import ResBlock, TextCond, UNet
from torch._subclasses.fake_tensor import FakeTensorMode

quick = make_config("tiny", dataset="sample", base_channels=16, batch_size=24, steps=4, lr_warmup=2, optimizer="adamw", mixed_precision="no")
def trainer(config=quick, **kw): return Trainer(config, Batches(*sample_data(), config.batch_size, config.seed), make_accelerator("cpu"), **kw)
def awake(net): g = rng(3); [p.data.normal_(0, .05, generator=g) for p in net.parameters() if not p.any()]; return net     # no branch is closed
def words(config, n): return TextCond(torch.randn(n, config.text_length, config.text_dim, generator=rng(1)), torch.arange(config.text_length) < torch.tensor([[5]] * n))
def inputs(config, n): return torch.randn(n, config.channels, config.image_size, config.image_size, generator=rng(0)), torch.arange(n) * 100 + 50, words(config, n) if config.text_dim else torch.zeros(n, dtype=torch.long)

def gradients(net, given):
    torch.manual_seed(7); net.zero_grad(); loss = net.train()(*given).square().mean(); loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])

KINDS = dict(plain=dict(), dropout=dict(dropout=.3), attention=dict(dropout=.3, attention_resolutions=(7,)), words=dict(dropout=.3, attention_resolutions=(7,), text_dim=12, text_length=6), transformer=dict(network="transformer", patch_size=4, depth=3))

@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_blocks_computed_twice_give_the_same_loss_and_gradients(changes):
    config = make_config("fast", base_channels=16, **changes); net, given = awake(build(config)), inputs(config, 4)
    loss, plain = gradients(net, given); names = set(net.state_dict())
    again, twice = gradients(recompute(net), given)
    assert abs(loss - again) < 1e-5 and (plain - twice).abs().max() < 1e-5 < plain.abs().max() and set(net.state_dict()) == names
    with torch.no_grad(): assert torch.equal(net.eval()(*given), build_like(config, net)(*given))

@pytest.mark.parametrize("kind", ["attention", "words", "transformer"])
def test_networks_in_channels_last_have_the_same_loss_and_gradients(kind):
    config = make_config("fast", base_channels=16, **KINDS[kind] | dict(dropout=0)); net, (x, *given) = awake(build(config)), inputs(config, 4)
    loss, plain = gradients(net, (x, *given))
    again, last = gradients(copy.deepcopy(net).to(memory_format=torch.channels_last), (x.contiguous(memory_format=torch.channels_last), *given))
    assert abs(loss - again) < 1e-5 and (plain - last).abs().max() < 1e-5 < plain.abs().max()

@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(channel_mults=(1, 2)), dict(network="transformer", patch_size=4, depth=1)], ids=["unet", "transformer"])
def test_compiled_networks_have_the_same_loss_and_gradients(changes):
    config = make_config("fast", base_channels=16, dropout=0, **changes); net, given = awake(build(config)), inputs(config, 4)
    loss, plain = gradients(net, given); net.compile(); again, fused = gradients(net, given)
    assert abs(loss - again) < 1e-5 and (plain - fused).abs().max() < 1e-5 < plain.abs().max()

def test_the_average_may_be_kept_on_the_cpu():
    a, b = trainer(), trainer(ema_cpu=True)
    assert [x.loss for x in a] == [x.loss for x in b] and all(torch.equal(x, y) for x, y in zip(a.averaged.parameters(), b.network().parameters()))

def build_like(config, net): twin = build(config); twin.load_state_dict(net.state_dict()); return twin.eval()

def test_less_is_kept_for_the_way_back():
    config = make_config("fast", base_channels=16); kept = []
    for net in (build(config), recompute(build(config))):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda z: sizes.__setitem__(z.data_ptr(), z.nbytes) or z, lambda z: z): net(*inputs(config, 8))
        kept.append(sum(sizes.values()))
    assert kept[1] < .6 * kept[0], kept

def test_any_network_that_names_its_blocks_can_do_it():
    class Chain(torch.nn.Module):
        def __init__(self): super().__init__(); self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(.5)) for _ in range(3)])
        def forward(self, x):
            for b in self.blocks: x = b(x)
            return x
    torch.manual_seed(0); net, x = Chain(), (torch.randn(5, 4),)
    (_, a), (_, b) = gradients(net, x), gradients(recompute(net), x)
    assert (a - b).abs().max() < 1e-6 and all(isinstance(m, ResBlock) for m in UNet().blocks)
    with pytest.raises(ConfigError, match="does not say by .blocks"): recompute(torch.nn.Linear(2, 2))

def test_training_with_blocks_computed_twice_is_the_same_run():
    config = replace(quick, dropout=.2); a, b = trainer(config), trainer(config, checkpoint_activations=True)
    assert max(abs(x.loss - y.loss) for x, y in zip(a, b)) < 1e-5
    for x, y in zip(a.averaged.parameters(), b.averaged.parameters()): assert (x - y).abs().max() < 1e-5

@pytest.mark.parametrize("n", [2, 3, 24])
def test_parts_add_up_to_the_gradients_of_the_whole_batch(n):
    (whole, a), (parts, b) = ((t.gradients(*t.inputs()), [p.grad for p in t.raw.parameters()]) for t in (trainer(), trainer(replace(quick, accumulate=n))))
    assert abs(whole - parts) < 1e-5 and max((x - y).abs().max() for x, y in zip(a, b)) < 1e-5 < max(x.abs().max() for x in a)

def test_parts_with_captions():
    config = replace(quick, text_dim=12, text_length=6, accumulate=3)
    class Captioned(Batches):
        def at(self, step): x, _ = super().at(step); return x, words(config, len(x))
    losses = [[log.loss.item() for log in Trainer(c, Captioned(*sample_data(), 24, 0), make_accelerator("cpu"), checkpoint_activations=c.accumulate > 1)] for c in (config, replace(config, accumulate=1))]
    assert max(abs(a - b) for a, b in zip(*losses)) < 1e-5

def test_parts_resume_to_the_same_numbers_and_may_change_when_resumed(tmp_path):
    config = replace(quick, accumulate=4, dropout=.2); whole = [log.loss.item() for log in trainer(config)]
    t = trainer(config); head = [t.one_step().loss.item() for _ in range(2)]; save_checkpoint(t, tmp_path / "a.pth")
    assert head + [log.loss.item() for log in resume(trainer(config), tmp_path / "a.pth")] == whole
    assert resume(trainer(replace(config, accumulate=2)), tmp_path / "a.pth").step == 2 and differences(config, dict(accumulate=2, lr=config.lr)) == ""

@pytest.mark.parametrize("n", [0, -1, 5, 48])
def test_parts_that_do_not_divide_the_batch_are_refused(n):
    with pytest.raises(ConfigError, match=f"accumulate = {n}: it is at least 1, and divides batch_size 24"): make_config(**vars(quick) | dict(accumulate=n))

def test_sharded_weights_are_refused_by_name():
    class Pretended: num_processes, distributed_type = 8, "FSDP"
    with pytest.raises(ConfigError, match="FSDP"): Trainer(quick, None, Pretended())

def test_parts_and_processes_share_out_one_batch():
    class Pretended: num_processes, distributed_type = 2, "MULTI_CPU"
    with pytest.raises(ConfigError, match="cannot be shared out among 2 processes in 8 parts each"): Trainer(replace(quick, accumulate=8), None, Pretended())

def test_flags_and_their_help(capsys):
    args = commands.train_parser().parse_args("--accumulate 4 --checkpoint_activations".split())
    assert args.checkpoint_activations and commands.config_of(args).accumulate == 4 and not commands.train_parser().parse_args([]).checkpoint_activations
    said = commands.train_parser().format_help(); assert "--accumulate ACCUMULATE" in said and "(off)" in said and all(name in said for name in presets)

@pytest.mark.parametrize("name", presets)
def test_every_preset_builds_and_takes_a_step_with_one_image(name):
    "the larger ones with shapes and no numbers"
    config = make_config(name)
    with torch.device("meta"): size = sum(p.numel() for p in build(config).parameters())
    mode = FakeTensorMode() if size > 10e6 else torch.enable_grad()
    with mode:
        net = recompute(build(config)); x, t = torch.zeros(1, config.channels, config.image_size, config.image_size), torch.tensor([7])
        cond = TextCond(torch.zeros(1, config.text_length, config.text_dim), torch.ones(1, config.text_length, dtype=torch.bool)) if config.text_dim else torch.tensor([0])
        out = net(x, t, cond); out.square().mean().backward()
        assert out.shape == x.shape and all(p.grad is not None for p in net.parameters())

def test_the_presets_of_larger_images_hide_as_much():
    for name in ("photos64", "celeba64", "photos128", "xl"):
        config = make_config(name); assert math.isclose(config.schedule_shift, resolution_shift(config.image_size, 32), abs_tol=1e-3), name
        assert (schedule_of(config).snr > 1).sum() < 400
    assert make_config("celeba64").num_classes == 1 and make_config("cifar10").dataset == "cifar10" and make_config("cifar10").num_classes == 10
