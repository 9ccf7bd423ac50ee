"Schedules and samplers against Hugging Face's diffusers and against the papers' formulas."
import math
import numpy as np, pytest, torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from fashiondiff.data import rng
from fashiondiff.sampling import ddim, ddpm, dpmpp_2m, posterior, timesteps
from fashiondiff.schedule import make_schedule

names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
kinds = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

class Toy:
    "A denoiser that is smooth, depends on t, and is neither ideal nor bounded"
    null, shape = 10, (1, 4, 4)
    def __init__(self, kind): self.kind = kind
    def __call__(self, x, t, cond): return torch.tanh(1.3 * x + t.view(-1, 1, 1, 1) / 700) * 0.9 + 0.2 * x

def start(): return torch.randn(3, 1, 4, 4, generator=rng(0), dtype=torch.float64)

def relative(a, b): return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()

def in_float64(scheduler, schedule):
    "diffusers keeps its tables in float32: put ours in their place, in float64"
    scheduler.alphas_cumprod = schedule.alpha**2
    prev = torch.cat([torch.ones(1, dtype=torch.float64), scheduler.alphas_cumprod[:-1]])
    scheduler.alphas = scheduler.alphas_cumprod / prev
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler

@pytest.mark.parametrize("name", names)
def test_tables_are_those_of_diffusers(name):
    ours, theirs = make_schedule(name), DDPMScheduler(1000, beta_schedule=names[name])
    a = ours.alpha**2
    betas = 1 - a / torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    assert torch.allclose(betas, theirs.betas.double(), rtol=2e-4, atol=1e-7)          # theirs are float32
    assert torch.allclose(a, theirs.alphas_cumprod.double(), rtol=2e-3, atol=1e-9)

@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("name", names)
def test_ddpm_step_by_step(name, kind, clip, monkeypatch):
    "The same noise and the same denoiser through all 1,000 steps. `fixed_small` is the posterior variance; diffusers floors it at 1e-20."
    s, f, y = make_schedule(name), Toy(kind), start()
    theirs = in_float64(DDPMScheduler(1000, beta_schedule=names[name], prediction_type=kinds[kind], clip_sample=clip, variance_type="fixed_small"), s)
    theirs.set_timesteps(1000)
    drawn = []
    def noise(x): drawn.append(torch.randn(x.shape, generator=rng(1, len(drawn)), dtype=x.dtype)); return drawn[-1]
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: drawn[-1])
    for step in ddpm(f, s, start(), None, clip=clip, noise=noise):
        t = torch.full((3,), step.t)
        y = theirs.step(f(y, t, None), step.t, y).prev_sample
        assert relative(step.x, y) < 1e-6, step.t
        y = step.x                                                                       # compare single steps, not their accumulated rounding

@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("name", names)
def test_ddim_step_by_step(name, kind, eta):
    "50 trailing steps. diffusers keeps the unclipped eps unless told otherwise, hence `use_clipped_model_output`."
    s, f, y = make_schedule(name), Toy(kind), start()
    theirs = in_float64(DDIMScheduler(1000, beta_schedule=names[name], prediction_type=kinds[kind], clip_sample=True, timestep_spacing="trailing"), s)
    theirs.set_timesteps(50)
    assert theirs.timesteps.tolist() == timesteps(s, 50, "trailing")[:-1]
    drawn = []
    def noise(x): drawn.append(torch.randn(x.shape, generator=rng(1, len(drawn)), dtype=x.dtype)); return drawn[-1]
    for step in ddim(f, s, start(), None, 50, "trailing", eta=eta, noise=noise):
        last = step.t == timesteps(s, 50, "trailing")[-2]
        z = drawn[-1] if drawn and not last else torch.zeros_like(y)
        y = theirs.step(f(y, torch.full((3,), step.t), None), step.t, y, eta=eta, use_clipped_model_output=True, variance_noise=z if eta else None).prev_sample
        assert relative(step.x, y) < 1e-6, step.t

def test_ddim_whole_path_without_clipping():
    "No clipping, no resynchronisation: the end points agree too."
    s, f, y = make_schedule("linear"), Toy("eps"), start()
    theirs = in_float64(DDIMScheduler(1000, beta_schedule="linear", clip_sample=False, timestep_spacing="trailing"), s)
    theirs.set_timesteps(25)
    for t in theirs.timesteps: y = theirs.step(f(y, torch.full((3,), int(t)), None), int(t), y).prev_sample
    for step in ddim(f, s, start(), None, 25, "trailing", clip=False): pass
    assert relative(step.x, y) < 1e-6

@pytest.mark.parametrize("name", names)
def test_dpmpp_2m_against_diffusers(name):
    "diffusers casts to float32, and computes its last, infinite stride the same way (`lower_order_final`, sigma 0)."
    s, f, y = make_schedule(name), Toy("x0"), start()
    theirs = DPMSolverMultistepScheduler(1000, beta_schedule=names[name], prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=True)
    theirs.set_timesteps(12)
    assert theirs.timesteps.tolist() == timesteps(s, 12, "trailing")[:-1]
    y = y.float()
    for step, t in zip(dpmpp_2m(f, s, start(), None, 12, "trailing", clip=False), theirs.timesteps):
        y = theirs.step(f(y, torch.full((3,), int(t)), None), t, y).prev_sample
        assert relative(step.x, y.double()) < 1e-4, int(t)

@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "flow"])
def test_dpmpp_2m_against_the_paper(name):
    "Algorithm 2 of Lu et al. 2022 written out with its own names, one stride at a time."
    s, f = make_schedule(name), Toy("x0")
    lam = lambda t: torch.log(s.alpha[t] / s.sigma[t])
    ts = timesteps(s, 15)
    x, buffer = start(), []
    states = [step.x for step in dpmpp_2m(f, s, start(), None, 15, clip=False)]
    for i in range(1, len(ts)):
        s_i1, s_i = ts[i - 1], ts[i]
        buffer.append(f(x, torch.full((3,), s_i1), None))
        if s_i < 0: x = buffer[-1]
        else:
            h = lam(s_i) - lam(s_i1)
            D = buffer[-1]
            if i > 1:
                r = (lam(s_i1) - lam(ts[i - 2])) / h
                D = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
            x = s.sigma[s_i] / s.sigma[s_i1] * x - s.alpha[s_i] * (torch.exp(-h) - 1) * D
        assert relative(states[i - 1], x) < 1e-10

def test_posterior_is_that_of_the_ddpm_paper():
    "Equations 6 and 7 in betas, for neighbouring steps."
    s = make_schedule("linear")
    ab = s.alpha**2
    for t in (1, 10, 500, 999):
        beta = 1 - ab[t] / ab[t - 1]
        want = (math.sqrt(1 - beta) * (1 - ab[t - 1]) / (1 - ab[t]), math.sqrt(ab[t - 1]) * beta / (1 - ab[t]), math.sqrt(beta * (1 - ab[t - 1]) / (1 - ab[t])))
        assert np.allclose(posterior(s, t, t - 1), want, rtol=1e-9)
