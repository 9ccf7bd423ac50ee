import os, runpy
from pathlib import Path
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")
offline = Path(__file__).parent / "offline"                                       # sockets reach this machine alone: here, …
runpy.run_path(str(offline / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(offline), os.environ.get("PYTHONPATH")]))       # … and in every Python process that a test starts
