"""Learn diffusion models by building them: the public names of the modules (where a module has the same name, the module), imported when they are first asked for; `fashiondiff.hub`, which needs diffusers, by itself."""
from importlib import import_module

__version__ = "0.1.0"

_modules = ("data", "schedule", "unet", "transformer", "optimizer", "training", "sampling", "guidance", "evaluation", "photos", "text", "vae", "latent", "commands")

def __getattr__(name):
    if name == "__all__": return __dir__()                     # for `from fashiondiff import *`
    if name in _modules: return import_module(f"fashiondiff.{name}")
    for module in _modules:
        found = import_module(f"fashiondiff.{module}")
        if name in getattr(found, "__all__", ()): return getattr(found, name)
    raise AttributeError(f"module 'fashiondiff' has no attribute {name!r}")

def __dir__():
    return sorted({"__version__"}.union(*(getattr(import_module(f"fashiondiff.{m}"), "__all__", ()) for m in _modules)))
