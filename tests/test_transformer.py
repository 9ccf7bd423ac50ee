"The transformer through the doors that users take: configuration, training, files, samplers; its attention against PyTorch's own module and diffusers."
import itertools
from dataclasses import replace
import pytest, torch, torch.nn.functional as F
from torch import nn
from fashiondiff.data import Batches, rng, sample_data
from fashiondiff.guidance import guide
from fashiondiff.optimizer import Muon
from fashiondiff.sampling import ddim, sample
from fashiondiff.training import CheckpointError, ConfigError, Trainer, build, draw, load_model, make_accelerator, make_config, resume, save_checkpoint, save_weights, step_density
from fashiondiff.transformer import Modulation, MultiHead, Transformer, TransformerBlock, modulate, patchify, rotate, turns, unpatchify
from fashiondiff.unet import TextCond

small = dict(base_channels=32, depth=2, heads=2, patch_size=4, batch_size=20, lr_warmup=0, mixed_precision="no")

def config(**changes): return make_config("dit", **small | dict(steps=6) | changes)
def trainer(**changes): c = config(**changes); return Trainer(c, Batches(*sample_data(), c.batch_size, c.seed), make_accelerator("cpu", c.mixed_precision))
def awake(net, std=0.1):
    "nothing is zero any more"
    for i, p in enumerate(net.parameters()): nn.init.normal_(p, std=std, generator=rng(0, i))
    return net.eval().requires_grad_(False)
def inputs(n=3, size=28, channels=1): return torch.randn(n, channels, size, size, generator=rng(1)), torch.tensor([3, 500, 999])[:n], torch.tensor([0, 9, 10])[:n]
def captions(d=24): return TextCond(torch.randn(3, 5, d, generator=rng(2)), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool())

def test_the_preset_is_a_transformer_with_the_work_of_fast_tuned():
    from torch.utils.flop_counter import FlopCounterMode
    def work(net):
        with torch.no_grad(), FlopCounterMode(display=False) as count: net.eval()(*(z.to("meta") for z in inputs(1)))
        return count.get_total_flops()
    with torch.device("meta"): dit, unet = build(make_config("dit")), build(make_config("fast_tuned"))
    assert type(dit) is Transformer and (dit.kind, dit.null, dit.shape) == ("v", 10, (1, 28, 28))
    assert abs(work(dit) / work(unet) - 1) < 0.1

@pytest.mark.parametrize("bad, message", [(dict(patch_size=8), "divisible by its patch_size, 8"), (dict(positions="learned"), "rope, sincos, none"), (dict(depth=0), "at least 1"),
                                          (dict(depth=10_000), "at most"), (dict(base_channels=36), "in each of 2 heads"), (dict(base_channels=36, heads=8, positions="sincos"), "cannot be shared out")])
def test_impossible_ones_are_refused_by_name(bad, message):
    with pytest.raises(ConfigError, match=message): build(config(**bad))

@pytest.mark.parametrize("positions", ["rope", "sincos", "none"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_saved_and_loaded(tmp_path, positions, suffix):
    t = trainer(positions=positions); awake(t.averaged); path = tmp_path / f"a.{suffix}"
    save_checkpoint(t, path, weights_only=True) if suffix == "pth" else save_weights(t.averaged, t.config, path)
    loaded = load_model(path); x = inputs()
    assert type(loaded.model) is Transformer and loaded.config == t.config and loaded.model.positions == positions
    assert torch.allclose(loaded.model(*x), t.averaged(*x), atol=0 if suffix == "pth" else 2e-2)

@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_another_architecture_are_refused_by_name(tmp_path, suffix):
    "a file whose configuration claims a U-Net, and a run of a U-Net that should go on from a transformer's checkpoint"
    t = trainer(); path = tmp_path / f"a.{suffix}"; claimed = replace(t.config, network="unet", patch_size=1)
    if suffix == "pth": t.config, own = claimed, t.config; save_checkpoint(t, path); t.config = own
    else: save_weights(t.averaged, claimed, path)
    with pytest.raises(CheckpointError, match=f"a.{suffix} do not fit its configuration"): load_model(path)
    save_checkpoint(t, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"network = unet \(there: transformer\)"): resume(Trainer(claimed, t.batches, make_accelerator("cpu")), tmp_path / "b.pth")

def test_a_process_that_knows_only_the_file_finds_the_network(tmp_path):
    import subprocess, sys
    save_weights(awake(build(config())), config(), tmp_path / "a.safetensors")
    done = subprocess.run([sys.executable, "-c", f"from fashiondiff import load_model; print(type(load_model({str(tmp_path / 'a.safetensors')!r}).model).__name__)"], capture_output=True, text=True)
    assert done.stdout.strip() == "Transformer", done.stderr

def test_trains_with_muon_resumes_to_the_same_bits_and_learns(tmp_path):
    straight = trainer(steps=30, lr=5e-3, dropout=0.1); losses = [log.loss.item() for log in straight]
    assert type(straight.optimizer.optimizer) is Muon and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    first = trainer(steps=30, lr=5e-3, dropout=0.1)
    for log in itertools.islice(first, 12): pass
    save_checkpoint(first, tmp_path / "a.pth")
    assert [log.loss.item() for log in resume(trainer(steps=30, lr=5e-3, dropout=0.1), tmp_path / "a.pth")] == losses[12:]

def test_who_steps_what():
    net = build(config(text_dim=24)); matrices, others = ({id(p) for p in g["params"]} for g in Muon(net).param_groups)
    for m in net.modules():
        if isinstance(m, nn.Linear): assert id(m.weight) in matrices and id(m.bias) in others
        if isinstance(m, (Modulation, nn.Embedding)): assert id(m.weight) in others
    for name, p in net.named_parameters(): assert p.ndim == 2 or id(p) in others, name

def test_bfloat16_autocast_and_weights():
    log = next(iter(trainer(mixed_precision="bf16"))); exact = next(iter(trainer()))
    assert log.loss.dtype == torch.float32 and abs(log.loss - exact.loss) < 0.02 and log.grad_norm.isfinite()
    net = awake(build(config())); x = inputs(); want = net(*x)
    with torch.autocast("cpu", torch.bfloat16): mixed = net(*x)
    half = net.to(torch.bfloat16)(*x)
    for got in (mixed, half): assert got.dtype == torch.float32 and (got - want).abs().max() < 0.1 * want.abs().max()

def test_samples_guided_and_not():
    net, schedule = awake(build(config()), 0.05), trainer().schedule; x, t, y = inputs()
    assert sample(guide(net, 2.0), schedule, ["dress", "bag"], n=2, steps=3).shape == (4, 1, 28, 28)
    null = torch.full_like(y, 10)
    assert torch.allclose(guide(net, 2.0)(x, t, y), 2 * net(x, t, y) - net(x, t, null), atol=1e-5)

def test_words():
    net, schedule, (x, t, _), words = awake(build(config(text_dim=24)), 0.2), trainer().schedule, inputs(), captions()
    assert not isinstance(net.null, int) and net(x, t, words).isfinite().all()
    noisy = TextCond(torch.where(words.mask[..., None], words.emb, 99.0), words.mask)
    longer = TextCond(F.pad(words.emb, (0, 0, 0, 4), value=7.0), F.pad(words.mask, (0, 4)))
    for other in (noisy, longer): assert torch.allclose(net(x, t, other), net(x, t, words), atol=1e-5)
    assert (net(x, t, words) - net(x, t, words[[1, 2, 0]])).abs().amax((1, 2, 3)).min() > 1e-3
    *_, last = ddim(guide(net, 2.0), schedule, x, words, 3)
    assert last.x.shape == x.shape and last.x.isfinite().all()

def test_words_train():
    net, (x, t, _), words = build(config(text_dim=24)), inputs(), captions(); opt = Muon(net, 1e-2)
    _, eps, cond = draw(0, 0, x, words, net.null, step_density(trainer().schedule), p_uncond=0.5); losses = []
    for _ in range(12): loss = (net(x, t, cond) - eps).square().mean(); loss.backward(); opt.step(); opt.zero_grad(); losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(b.reading.attention.out.weight.any() for b in net.blocks)

@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_any_size_that_the_patch_divides(positions):
    net = awake(Transformer(image_size=16, channels=3, base_channels=32, depth=1, heads=2, positions=positions)); t, y = torch.tensor([5]), torch.tensor([1])
    for h, w in ((16, 16), (16, 24), (2, 2), (64, 10)): assert net(torch.randn(1, 3, h, w), t, y).shape == (1, 3, h, w)
    with pytest.raises(ValueError, match="16×15 pixels"): net(torch.randn(1, 3, 16, 15), t, y)

def test_a_table_made_while_sampling_serves_training():
    for positions in ("rope", "sincos"):
        net = build(config(positions=positions)); x = torch.randn(3, 1, 52, 76), *inputs()[1:]                                # a size that no other test has
        with torch.inference_mode(): net(*x)
        net(*x).square().mean().backward()

def test_compiled_it_is_one_graph_without_a_warning():
    import warnings
    net = awake(build(config(text_dim=24)))
    with warnings.catch_warnings(): warnings.simplefilter("error"); torch._dynamo.reset(); how = torch._dynamo.explain(net)(*inputs()[:2], captions())
    assert (how.graph_count, how.graph_break_count) == (1, 0), how.break_reasons

def plain(heads, channels=24, source=None):
    "attention without what PyTorch's module does not have"
    a = MultiHead(channels, heads, source); a.norm_q, a.norm_k = nn.Identity(), nn.Identity(); a.norm_q.weight = a.q.weight
    return a.requires_grad_(False)

@pytest.mark.parametrize("source", [None, 10])
def test_attention_is_that_of_torch(source):
    a, x, z = plain(3, source=source), torch.randn(2, 7, 24), torch.randn(2, 5, source or 24); mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()
    b = nn.MultiheadAttention(24, 3, kdim=z.shape[-1], vdim=z.shape[-1], batch_first=True).requires_grad_(False)
    if source: b.q_proj_weight.data, b.k_proj_weight.data, b.v_proj_weight.data = a.q.weight.data, a.k.weight.data, a.v.weight.data
    else: b.in_proj_weight.data = torch.cat([a.q.weight, a.k.weight, a.v.weight])
    b.in_proj_bias.data = torch.cat([a.q.bias, a.k.bias, a.v.bias]); b.out_proj.load_state_dict(a.out.state_dict())
    assert torch.allclose(a(x, z, mask=mask[:, None, None]), b(x, z, z, key_padding_mask=~mask)[0], atol=1e-5)

def test_attention_with_normalised_queries_is_that_of_diffusers():
    from diffusers.models.attention_processor import Attention
    a, x = MultiHead(24, 3).requires_grad_(False), torch.randn(2, 7, 24); nn.init.normal_(a.norm_q.weight)
    b = Attention(24, heads=3, dim_head=8, bias=True, qk_norm="rms_norm", eps=1e-6).requires_grad_(False)
    for mine, theirs in ((a.q, b.to_q), (a.k, b.to_k), (a.v, b.to_v), (a.out, b.to_out[0])): theirs.load_state_dict(mine.state_dict())
    b.norm_q.weight.data.copy_(a.norm_q.weight)
    assert torch.allclose(a(x), b(x), atol=1e-5)

def test_turns_are_those_of_diffusers():
    "along one row ours are the rotary embedding of columns, in the layout of halves"
    from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
    x = torch.randn(2, 3, 11, 16); ours = rotate(x, turns(1, 11, 16)); column = [4, 5, 6, 7, 12, 13, 14, 15]                  # the half of the features that tells columns
    cos, sin = get_1d_rotary_pos_embed(8, torch.arange(11), theta=100.0, use_real=True, repeat_interleave_real=False)
    theirs = apply_rotary_emb(x[..., column], (cos, sin), use_real=True, use_real_unbind_dim=-2)
    assert torch.allclose(ours[..., column], theirs, atol=1e-5)
    rest = [i for i in range(16) if i not in column]; assert torch.allclose(ours[..., rest], x[..., rest])                    # all stand in row 0

def test_the_adaptive_norm_is_that_of_diffusers_dit():
    from diffusers.models.normalization import AdaLayerNormZeroSingle
    theirs = AdaLayerNormZeroSingle(24).requires_grad_(False); ours = Modulation(24, 24, 3); ours.load_state_dict(theirs.linear.state_dict())
    x, e = torch.randn(2, 7, 24), torch.randn(2, 24); y, gate = theirs(x, e); shift, scale, mine = ours(F.silu(e))
    assert torch.allclose(modulate(x, shift, scale), y, atol=1e-5) and torch.allclose(mine[:, 0], gate, atol=1e-6)

def test_blocks_start_as_the_identity_and_gradients_reach_every_parameter_once_they_are_open():
    block, x, e = TransformerBlock(32, 2, text_dim=24), torch.randn(3, 9, 32), torch.randn(3, 32)
    assert torch.equal(block(x, e, turns(3, 3, 16), captions()), x)
    net = build(config(text_dim=24))
    for i, p in enumerate(net.parameters()): nn.init.normal_(p, std=0.1, generator=rng(0, i))
    x, t, _ = inputs(); net(x, t, captions()).square().mean().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]

@pytest.mark.parametrize("c, p, h, w", [(1, 1, 3, 5), (3, 2, 4, 6), (1, 4, 28, 28), (4, 7, 7, 14)])
def test_patches_there_and_back(c, p, h, w):
    x = torch.randn(2, c, h, w); tokens = patchify(x, p)
    assert tokens.shape == (2, h * w // p**2, c * p * p) and torch.equal(unpatchify(tokens, p, h), x)
    assert torch.equal(tokens.mT, F.unfold(x, p, stride=p))                                                                   # PyTorch's own patches
