"""Imports that an interrupt must not leave half done."""

import sys

import pytest

from batchnorm.kernels._imported import imported
from processes import python


@pytest.mark.parametrize("module", ["numba.core.types", "batchnorm.kernels._numba_vector"])
def test_an_interrupt_of_the_first_call_breaks_no_later_one(module):
    assert (
        python(
            f"""
            import importlib.abc, signal, sys, torch, batchnorm

            class Press(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path, target=None):
                    if name == {module!r}:
                        sys.meta_path.remove(self)
                        signal.raise_signal(signal.SIGINT)

            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.meta_path.insert(0, Press())
            layer, x, out = batchnorm.BatchNorm2d(4), torch.randn(8, 4, 8, 8), []
            for _ in range(3):
                try:
                    out.append(layer(x).std().item() > 0.9)
                except KeyboardInterrupt:
                    out.append("interrupted")
            print(*out)
            """
        )
        == "interrupted True True\n"
    )


def test_what_cannot_be_imported_is_raised_where_it_was_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match="numba"):
        imported("json", "numba")
