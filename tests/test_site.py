"""The site without Quarto: what nbdev hands to it is checked for links, references, captions and sizes, and shown in a browser.
With `SITE=_docs` the pages of a built site take the place of ours in the browser."""
import ast, configparser, html, json, os, re, shutil, threading, warnings
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse
import nbformat, pytest, yaml
from execnb.nbio import read_nb
from nbconvert.filters import markdown2html
from nbdev import processors
from PIL import Image
from make_readme import ROOT, colab

NBS = ROOT / "nbs"
config = configparser.ConfigParser(delimiters=["="]); config.read(ROOT / "settings.ini", encoding="utf8"); config = config["DEFAULT"]
chapters = sorted(p for p in NBS.glob("[0-9]*.ipynb"))
sources = sorted(p for e in ("ipynb", "qmd") for p in NBS.glob(f"*.{e}"))
each = lambda paths: pytest.mark.parametrize("path", paths, ids=lambda p: p.stem)

class Processed(processors.FilterDefaults):
    "nbdev's processors but for the one that runs cells"
    def base_procs(self): return [p for p in super().base_procs() if p is not processors.exec_show_docs]

def options(cell): return {k: v for k, v in re.findall(r'^#\|\s*([\w-]+):\s*"?(.*?)"?\s*$', cell.source, re.M)}
def prose(text): return re.sub(r"(`+)[^`].*?\1", "", re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.M | re.S), flags=re.S)
def pandoc_id(heading):
    "the anchor that Pandoc makes of a heading"
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"\{[^}]*\}\s*$", "", heading))
    return re.sub(r"^[^a-zA-ZÀ-ſ]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain).strip().lower()))

class Page:
    def __init__(self, path):
        os.chdir(ROOT); self.path, self.name = path, path.name
        if path.suffix == ".ipynb": nb = read_nb(path); Processed()(nb); self.cells = nb.cells; front = self.cells[0].source
        else: text = path.read_text(encoding="utf8"); front, body = re.match(r"---\n(.*?\n)---\n(.*)", text, re.S).groups(); self.cells = [nbformat.v4.new_markdown_cell(body)]
        self.front = yaml.safe_load(front.strip().strip("-"))
        self.url = self.front.get("output-file", path.stem + ".html")
        self.text = "\n\n".join(c.source for c in self.cells if c.cell_type == "markdown") + "\n"
        self.code = [c for c in self.cells if c.cell_type == "code"]
        self.figures = [(c, o["data"]) for c in self.code for o in c.get("outputs", []) if any(k.startswith("image/") for k in o.get("data", {}))]
        self.html = "".join("".join(o["data"]["text/html"]) for c in self.code for o in c.get("outputs", []) if "text/html" in o.get("data", {}))
        labels = [options(c)["label"] for c in self.code if "label" in options(c)] + re.findall(r"\{#([\w-]+)[ }]", self.text)
        assert len(labels) == len(set(labels)), f"{self.name}: a label twice: {labels}"
        self.labels = set(labels)
        self.anchors = self.labels | {pandoc_id(h) for h in re.findall(r"^#{1,6}\s+(.*)$", prose(self.text.replace("`", "")), re.M)}
        self.links = re.findall(r"(?<!!)\[[^]]*\]\(<?([^)\s>]+)>?\)", prose(self.text)) + re.findall(r"<(https?://[^>]+)>", prose(self.text))
        self.pictures = re.findall(r"!\[([^]]*)\]\(([^)\s]+)", self.text)

page = cache(Page)
def by_name(): return {p.name: p for p in sources}

@each(sources)
def test_links_lead_somewhere(path):
    "pages and anchors; addresses elsewhere have the form of one"
    me, bad = page(path), []
    for link in me.links:
        url = urlparse(link)
        if url.scheme: bad += [link] * (url.scheme != "https" or "." not in url.netloc); continue
        else: target = by_name().get(url.path) if url.path else path
        if not target: bad.append(link)
        elif url.fragment and unquote(url.fragment) not in page(target).anchors: bad.append(link)
    assert not bad, f"{path.name}: links to nowhere: {bad}"

@each(sources)
def test_references_are_resolved_on_their_page(path):
    "a website has no references from page to page: between chapters there are links"
    asked = set(re.findall(r"(?<![\w/.@])@((?:fig|eq|sec|tbl)-[\w-]*\w)", prose(page(path).text)))
    assert asked <= page(path).labels, f"{path.name}: {asked - page(path).labels}"
    for after in re.findall(r"\$\$ ?\{#eq-[\w-]+\}(.*\n.*)", page(path).text): assert not after.strip(), f"{path.name}: a labelled equation ends its paragraph: {after!r}"

@each(sources)
def test_every_picture_has_a_caption_and_alt_text(path):
    for cell, data in page(path).figures:
        o = options(cell); where = f"{path.name}: {cell.source[:80]!r}"
        assert re.fullmatch(r"fig-[a-z0-9-]+", o.get("label", "")), f"{where} has no label"
        assert len(o.get("fig-cap", "")) > 20 and len(o.get("fig-alt", "")) > 20 and o["fig-cap"] != o["fig-alt"], f"{where} has no caption or no alternative text"
    for alt, src in page(path).pictures: assert alt and ((NBS / src).is_file() or src.startswith("https:")), (path.name, src)
    for img in re.findall(r"<img\b[^>]*>", page(path).html): assert re.search(r'\balt="[^"]+"', img), (path.name, img[:200])

@each(sources)
def test_pages_are_light_and_need_no_network(path):
    assert len(page(path).html) < 400_000, f"{path.name}: {len(page(path).html) / 1000:.0f} kB of flipbooks"
    assert not re.search(r"""(?:src|href)=["']https?:""", page(path).html), path.name

@each([p for p in chapters if p in sources])
def test_building_the_site_runs_imports_and_exports_only(path):
    "nbdev runs every cell that imports something, to document what is exported: training, drawing and tests have no place in such a cell"
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code" or re.search(r"^#\|\s*(export[si]?|eval:\s*false)\b", cell.source, re.M): continue
        body = ast.parse(cell.source).body; imports = [n for n in ast.walk(ast.Module(body, [])) if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not imports or len(imports) == len(body), f"{path.name}: give the imports a cell of their own: {cell.source[:120]!r}"

@each(chapters)
def test_a_chapter_says_what_it_answers_and_what_to_read_next(path):
    text = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    assert re.match(r"# .+\n+> After this chapter you can ", text[0])
    end = "\n".join(text).rsplit("\n## ", 1)[1]
    assert end.startswith("Exercises") and "<details><summary>Solutions</summary>" in end and re.search(r"^Next: .*\]\(\w+\.(ipynb|qmd)", end, re.M), "exercises, folded solutions, and what comes next"

@each([p for p in sources if p.suffix == ".ipynb" and p.stem != "index"])
def test_a_chapter_opens_in_colab(path):
    "by the address that settings.ini gives"
    links = [l for l in page(path).links if "colab" in l]
    assert links == [re.search(r"\((.*)\)", colab(path.stem))[1]] and re.fullmatch(rf"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w.-]+/nbs/{path.name}", links[0]), links

def site():
    "the settings of the site, as Quarto merges them"
    parts = [yaml.safe_load(p.read_text(encoding="utf8")) for p in (NBS / "_quarto.yml", ROOT / "_quarto.yml", NBS / "sidebar.yml")]
    return parts[0] | parts[1] | dict(website=parts[1]["website"] | parts[2]["website"])

def test_the_sidebar_has_every_page_once_in_groups():
    contents = site()["website"]["sidebar"]["contents"]; groups = [c for c in contents if isinstance(c, dict)]
    listed = [p for c in contents for p in (c["contents"] if isinstance(c, dict) else [c])]
    assert sorted(listed) == sorted(by_name()) and len(groups) >= 6
    assert [p for p in listed if p[0].isdigit()] == [p.name for p in chapters], "chapters in the order of their numbers"

def test_the_settings_name_files_that_exist():
    s = site(); web, page_format = s["website"], s["format"]["html"]
    hrefs = [i["href"] for i in web["navbar"]["left"]] + re.findall(r"\]\((?!https:)([^)]+)\)", json.dumps(web["page-footer"]))
    for name in hrefs + [web["favicon"], web["open-graph"]["image"], web["twitter-card"]["image"], page_format["css"]]: assert (NBS / name).is_file(), name
    assert set(page_format["theme"]) == {"light", "dark"} and web["search"] and web["open-graph"]["image-alt"] and "source" in web["repo-actions"]
    card = web["open-graph"]; assert Image.open(NBS / card["image"]).size == (card["image-width"], card["image-height"]) and (NBS / card["image"]).stat().st_size < 300_000
    assert config["git_url"].count(config["user"]) and "github.com/" + config["user"] not in (ROOT / "_quarto.yml").read_text(encoding="utf8"), "the repository is named in settings.ini only"

def test_the_front_page_shows_clothes_first():
    front = page(NBS / "index.ipynb"); first = next(i for i, c in enumerate(front.cells) if c.get("outputs"))
    assert front.figures and first < 5 and len("".join(c.source for c in front.cells[:first] if c.cell_type == "markdown")) < 800
    for p in chapters: assert p.stem in front.text, f"{p.stem} is not on the map"
    for word in ("images", "schedule", "denoiser", "guidance", "sampler"): assert f"*{word}*" in front.text

def render(p):
    "A page as plain HTML: enough to see whether pictures, scripts and tables work in a browser"
    out = [f'<!doctype html><html lang="en"><meta charset="utf8"><link rel="icon" href="data:,"><title>{p.front["title"]}</title><h1>{p.front["title"]}</h1>']
    for c in p.cells[p.path.suffix == ".ipynb":]:
        if c.cell_type == "markdown": out.append(markdown2html(c.source)); continue
        o = options(c)
        if o.get("echo") != "false": out.append(f"<pre>{html.escape(c.source)}</pre>")
        for data in (x.get("data", {}) for x in c.get("outputs", [])):
            kind = next((k for k in ("text/html", "image/png", "image/jpeg") if k in data), None)
            if kind == "text/html": out.append("".join(data[kind]))
            elif kind: out.append(f'<figure id="{o.get("label", "")}"><img src="data:{kind};base64,{"".join(data[kind])}" alt="{html.escape(o.get("fig-alt", "a picture that waits for its words"))}"><figcaption>{html.escape(o.get("fig-cap", ""))}</figcaption></figure>')
    return "\n".join(out)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "the address of the pages: those of a built site, or ours"
    site = os.environ.get("SITE"); folder = ROOT / site if site else tmp_path_factory.mktemp("site")
    if not site:
        shutil.copytree(NBS / "media", folder / "media")
        for p in sources: (folder / page(p).url).write_text(render(page(p)), encoding="utf8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium: warnings.warn("NO BROWSER: the pages go unseen; install Chromium (apt-get install chromium)"); pytest.skip("no browser")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args="--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split())
        yield b
        b.close()

@each(sources)
def test_page_in_a_browser(browser, built, path):
    "no errors, every picture arrives and has words for it, no reference is left over"
    tab, errors = browser.new_page(), []
    tab.on("pageerror", lambda e: errors.append(str(e))); tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    tab.goto(built + page(path).url); tab.wait_for_load_state()
    state = tab.evaluate("""[...document.images].map(i => ({alt: i.getAttribute('alt'), ok: i.complete && i.naturalWidth > 0, src: i.src.slice(0, 80)}))""")
    assert not errors, errors
    assert len(state) >= len(page(path).figures) and not [i for i in state if not i["ok"]], [i for i in state if not i["ok"]]
    assert not [i for i in state if not i["alt"]], [i for i in state if not i["alt"]]
    assert "?@" not in tab.inner_text("body")
    wide = tab.evaluate("[...document.querySelectorAll('.flipbook')].map(b => [b.querySelector('input').max, b.querySelector('img').naturalWidth])")
    assert all(int(m) > 3 and w > 100 for m, w in wide) and len(wide) == page(path).html.count('class="flipbook"')
    tab.close()
