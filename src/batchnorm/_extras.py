"""How libraries that only some of it needs are got."""


def way(extra: str) -> str:
    """The command that installs an extra: from the source, as in README, since it is on no index.

    >>> way("study")
    "pip install '.[study]' in the folder of batchnorm's source"
    """
    return f"pip install '.[{extra}]' in the folder of batchnorm's source"
