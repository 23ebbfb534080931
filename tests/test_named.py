"""What a user's code is made of: imports are followed as they are written, and nothing is run."""

import sys
from pathlib import Path

import pytest

from batchnorm.named import call, sources


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            path = Path(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_imports_are_followed_into_packages_and_folders(written):
    written(
        mine="import numpy, os.path\nfrom package import deep\nfrom folder.one import f\nimport mine\n",
        other="x = 1",
        package__init="x = 1",
        package__deep="from . import near\nfrom .sub.far import x\nfrom .. import nothing",
        package__near="raise SystemExit('never run')",
        package__unused="x = 1",
        package__sub__far="import lonely",
        lonely="def f(:",
        folder__one="from folder import two",
        folder__two="",
    )
    Path("package/init.py").rename("package/__init__.py")
    assert list(sources("mine:net")) == [
        "folder.one", "folder.two", "lonely", "mine", "package", "package.deep", "package.near",
        "package.sub.far",
    ]  # fmt: skip
    assert list(sources("package.deep:net")) == [
        "lonely", "package", "package.deep", "package.near", "package.sub.far",
    ]  # fmt: skip


def test_a_module_that_makes_up_names_is_taken_with_all_below_it(written):
    written(
        models__zoo="from importlib import import_module\nimport_module('models.' + 'a')",
        models__a="",
        models__more__b="",
    )
    assert list(sources("models.zoo:net")) == ["models.a", "models.more.b", "models.zoo"]


def test_installed_libraries_are_known_by_version(written):
    written(mine="import sklearn.datasets, torch, numpy, json, batchnorm.data, not_there")
    known = sources("mine:net")
    assert list(known) == ["mine"]  # scikit-learn is not called sklearn where versions are kept
    written(mine="import mlxtend.data")
    from importlib.metadata import version

    assert sources("mine:net")["mlxtend (installed)"] == version("mlxtend")
    assert {"rich", "rich.table"} <= sources("rich.table:Table").keys()


def test_a_changed_file_changes_its_hash_and_no_other(written):
    written(mine="import parts", parts="x = 1")
    before = sources("mine:net")
    written(parts="x = 2")
    after = sources("mine:net")
    assert before["mine"] == after["mine"]
    assert before["parts"] != after["parts"]


def test_what_is_imported_anew_is_all_that_changed(written):
    written(mine="import parts\ndef f(): return parts.x", parts="x = 1")
    assert call("mine:f", "model") == 1
    written(parts="x = 2  # longer")
    assert call("mine:f", "model") == 2
    for name in ("mine", "parts"):
        sys.modules.pop(name)
