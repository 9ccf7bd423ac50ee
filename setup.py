"Everything a person may want to change stands in settings.ini; this file hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf8")
cfg = cfg["DEFAULT"]
extras = {k.removesuffix("_requirements"): cfg[k].split() for k in cfg if k.endswith("_requirements")}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    long_description=Path("README.md").read_text(encoding="utf8"), long_description_content_type="text/markdown",
    license="Apache-2.0", license_files=["LICENSE"],
    classifiers=["Development Status :: 4 - Beta", "Intended Audience :: Developers", "Intended Audience :: Education",
                 "Intended Audience :: Science/Research", "Natural Language :: English", "Programming Language :: Python :: 3",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(), extras_require=extras,
    packages=find_namespace_packages(include=["fashiondiff*"], exclude=["*__pycache__*"]), zip_safe=False,
    package_data={"fashiondiff": ["assets/*.safetensors", "weights/*.safetensors"]},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
)
