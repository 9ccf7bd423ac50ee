import os, runpy
from pathlib import Path
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"): os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(workers))))     # each has its share of the cores
offline = Path(__file__).parent / "offline"                                       # sockets reach this machine alone: here, …
runpy.run_path(str(offline / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(offline), os.environ.get("PYTHONPATH")]))       # … and in every Python process that a test starts
