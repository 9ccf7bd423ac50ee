"The explorers in a real JupyterLab in a real browser: every control is moved by keyboard or mouse, and the picture is compared with one made without a browser."
import base64, io, os, shutil, socket, subprocess, sys, time, urllib.request, warnings
import nbformat, pytest
from PIL import Image, ImageChops, ImageStat
from fashiondiff import denoising_explorer, guidance_explorer, noise_explorer, prompt_explorer
from make_readme import ROOT

chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if not chromium:
    warnings.warn("NO BROWSER: the explorers go untested; install Chromium (apt-get install chromium)")
    pytest.skip("no browser", allow_module_level=True)
from playwright.sync_api import sync_playwright

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "the address of a running JupyterLab, and its folder"
    folder, settings = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    (settings / "@jupyterlab/notebook-extension").mkdir(parents=True)
    (settings / "@jupyterlab/notebook-extension/tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = os.environ | dict(JUPYTERLAB_SETTINGS_DIR=str(settings), JUPYTER_RUNTIME_DIR=str(tmp_path_factory.mktemp("runtime")))
    env.pop("MPLBACKEND", None)
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port", str(port), "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.port_retries=0"],
                              cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api"); break
            except OSError: time.sleep(.25)
        yield f"http://127.0.0.1:{port}", folder
    finally: server.terminate(); server.wait(20)

@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args="--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split())
        yield b
        b.close()

class Shown:
    "An explorer on a page"
    def __init__(self, lab, browser, name, code):
        url, folder = lab
        cell = nbformat.v4.new_code_cell(code); nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), folder / f"{name}.ipynb")
        self.page, self.errors = browser.new_page(viewport=dict(width=1400, height=1000)), []
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.goto(f"{url}/lab/tree/{name}.ipynb?reset"); self.page.wait_for_selector(r"text=/\| Idle/", timeout=90_000)
        self.page.get_by_role("menuitem", name="Run", exact=True).click(); self.page.get_by_text("Run All Cells", exact=True).click()
        self.page.locator("img.widget-image").wait_for(timeout=90_000); self.page.wait_for_function("document.querySelector('img.widget-image').naturalWidth > 0")

    def picture(self):
        data = self.page.locator("img.widget-image").evaluate("e => fetch(e.src).then(r => r.arrayBuffer()).then(b => btoa(Array.from(new Uint8Array(b), c => String.fromCharCode(c)).join('')))")
        return base64.b64decode(data)

    def control(self, description): return self.page.locator(".jupyter-widgets", has=self.page.locator(f".widget-label:text-is('{description}')")).last
    def handle(self, description): return self.control(description).locator(".noUi-handle")
    def value(self, description):
        c = self.control(description)
        if c.locator("select").count(): return c.locator("select option:checked").inner_text()
        if c.locator("input").count(): return c.locator("input").input_value()
        return float(c.locator(".widget-readout").inner_text().replace(",", ""))

    def settles_at(self, explorer, seconds=40):
        "Does the picture become what the explorer draws, without a browser, for the values that the page shows?"
        end = time.time() + seconds
        while True:
            for key, c in explorer.controls.items():
                v = self.value(c.description); c.value = v if isinstance(c.value, str) else type(c.value)(v)
            explorer.redraw(); assert explorer.message.value == ""
            if alike(self.picture(), explorer.picture.value): return True
            if time.time() > end: return False
            time.sleep(.2)

def alike(a, b):
    if a == b: return True
    a, b = (Image.open(io.BytesIO(x)).convert("RGB") for x in (a, b))
    return a.size == b.size and max(ImageStat.Stat(ImageChops.difference(a, b)).mean) < .5

def moves(shown, explorer, move):
    "the picture changes by a move, and becomes the right one"
    before = shown.picture(); move()
    end = time.time() + 40
    while shown.picture() == before and time.time() < end: time.sleep(.05)
    assert shown.picture() != before, "the picture did not change"
    assert shown.settles_at(explorer), "the picture is not the one that the controls describe"

def drag(shown, description, share):
    bar = shown.control(description).locator(".noUi-base").bounding_box(); grip = shown.handle(description).bounding_box()
    mouse = shown.page.mouse; mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2); mouse.down()
    mouse.move(bar["x"] + bar["width"] * share, grip["y"] + grip["height"] / 2, steps=8); mouse.up()

def key(shown, description, *keys):
    target = shown.handle(description); target.focus()
    for k in keys: target.press(k)

def choose(shown, description, key):
    "by keyboard: JupyterLab takes bare arrow keys for itself, so the list is opened first"
    target = shown.control(description).locator("select"); target.focus(); target.press("Alt+ArrowDown"); shown.page.keyboard.press(key); shown.page.keyboard.press("Enter")

def write(shown, description, text):
    field = shown.control(description).locator("input"); field.click(); field.fill(text); field.press("Enter")

def test_noise_explorer(lab, browser):
    shown, mine = Shown(lab, browser, "noise", "from fashiondiff import noise_explorer\nex = noise_explorer()\nex"), noise_explorer()
    assert shown.settles_at(mine), "the first picture"
    moves(shown, mine, lambda: drag(shown, "step t", .9))
    moves(shown, mine, lambda: key(shown, "step t", *["ArrowLeft"] * 25))                       # quickly: none of the pictures on the way may come last
    moves(shown, mine, lambda: choose(shown, "schedule", "ArrowDown"))
    moves(shown, mine, lambda: shown.control("class").locator("select").select_option("bag"))
    moves(shown, mine, lambda: key(shown, "image", "ArrowRight"))
    moves(shown, mine, lambda: write(shown, "seed", "7"))
    assert not shown.errors, shown.errors
    shown.page.close()

def test_guidance_explorer(lab, browser):
    shown, mine = Shown(lab, browser, "guidance", "from fashiondiff import guidance_explorer\nex = guidance_explorer()\nex"), guidance_explorer()
    assert shown.settles_at(mine), "the first picture"
    moves(shown, mine, lambda: key(shown, "scale", "ArrowRight", "ArrowRight"))
    moves(shown, mine, lambda: drag(shown, "steps", .05))
    moves(shown, mine, lambda: choose(shown, "sampler", "ArrowUp"))
    moves(shown, mine, lambda: shown.control("class").locator("select").select_option("trouser"))
    moves(shown, mine, lambda: write(shown, "seed", "3"))
    assert not shown.errors, shown.errors
    shown.page.close()

def test_denoising_explorer(lab, browser):
    shown, mine = Shown(lab, browser, "denoising", "from fashiondiff import denoising_explorer\nex = denoising_explorer()\nex"), denoising_explorer()
    assert shown.settles_at(mine), "the first picture"
    def play():
        button = shown.page.locator(".widget-play button").first; button.click(); time.sleep(2); button.click()
    moves(shown, mine, play); assert shown.value("step") > 1
    moves(shown, mine, lambda: drag(shown, "step", 1.))
    moves(shown, mine, lambda: key(shown, "steps", "ArrowLeft"))
    moves(shown, mine, lambda: shown.control("class").locator("select").select_option("dress"))
    assert not shown.errors, shown.errors
    shown.page.close()

def test_prompt_explorer(lab, browser):
    shown, mine = Shown(lab, browser, "prompt", "from fashiondiff import prompt_explorer\nex = prompt_explorer('photos64', 1)\nex"), prompt_explorer("photos64", 1)
    assert shown.settles_at(mine), "the first picture"
    moves(shown, mine, lambda: write(shown, "prompt", "a blue shirt"))
    moves(shown, mine, lambda: write(shown, "not", "a person"))
    moves(shown, mine, lambda: write(shown, "seed", "3"))
    assert not shown.errors, shown.errors
    shown.page.close()

def test_errors_are_shown(lab, browser):
    code = """import ipywidgets as W, matplotlib.pyplot as plt
from fashiondiff import explorer
def draw(n):
    if n == 2: raise ValueError('two is <too> much')
    return plt.figure(figsize=(2, n + 1))
explorer(draw, n=W.IntSlider(0, 0, 3, description='n'))"""
    shown = Shown(lab, browser, "errors", code)
    before = shown.picture(); key(shown, "n", "ArrowRight", "ArrowRight")
    shown.page.get_by_text("ValueError: two is <too> much").wait_for(timeout=10_000)
    key(shown, "n", "ArrowRight"); shown.page.get_by_text("ValueError: two is <too> much").wait_for(state="detached", timeout=10_000)
    assert shown.picture() != before
    shown.page.close()

@pytest.mark.parametrize("name", ["00_schedule", "03_sampling", "04_guidance"])
def test_flipbooks_need_no_kernel_and_no_network(browser, tmp_path, name):
    "the HTML that the notebook stores, on a page of its own"
    html = [o.data["text/html"] for c in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells for o in c.get("outputs", []) if "flipbook" in o.get("data", {}).get("text/html", "")]
    assert html and sum(map(len, html)) < 400_000
    (tmp_path / "page.html").write_text('<!doctype html><meta charset="utf8">' + "".join(html), encoding="utf8")
    page, errors, asked = browser.new_page(), [], []
    page.on("pageerror", lambda e: errors.append(str(e))); page.on("request", lambda r: asked.append(r.url))
    page.goto((tmp_path / "page.html").as_uri())
    for i in range(len(html)):
        box = page.locator(".flipbook").nth(i); slider, picture, says = box.locator("input"), box.locator("img"), box.locator("output")
        seen = {(says.inner_text(), picture.get_attribute("src"))}; slider.focus(); slider.press("Home")
        for _ in range(int(slider.get_attribute("max"))): seen.add((says.inner_text(), picture.get_attribute("src"))); slider.press("ArrowRight")
        seen.add((says.inner_text(), picture.get_attribute("src")))
        assert len(seen) == int(slider.get_attribute("max")) + 1 == len({src for _, src in seen})
        assert picture.evaluate("e => e.naturalWidth") > 100 and says.inner_text() in picture.get_attribute("alt")
    assert not errors and not [u for u in asked if not u.startswith(("file:", "data:"))]
    page.close()
