"""Imports that an interrupt must not leave half done."""

from __future__ import annotations

import sys
from importlib import import_module
from threading import Thread


def imported(*names: str) -> None:
    """Import modules in a thread of their own, where no interrupt arrives.

    Of a module that Ctrl-C stops while it is imported Python forgets that it began, but not what it
    imported meanwhile. With that Numba's parts contradict each other, and no later import of it
    succeeds. Here the interrupt ends the wait, and the import goes on.

    A process that is forked while the import goes on has it half done. Whoever is called in the
    midst of an import of Numba that it is itself about finds what there is so far.

    Args:
        names: of the modules.

    Raises:
        ImportError: one of them cannot be imported.
    """
    if getattr(getattr(sys.modules.get(names[0]), "__spec__", None), "_initializing", False):
        for name in names:
            import_module(name)
        return
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for name in names:
                import_module(name)
        except BaseException as error:  # raised where it was asked for
            errors.append(error)

    thread = Thread(target=run, name="batchnorm imports")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
