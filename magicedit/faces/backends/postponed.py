"""Imports packages without executing those of their modules that are not used."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def postponed(*names: str) -> Iterator[None]:
    """Inside the context, an import of one of these modules executes it only at the first use of its names.

    names: full names of modules, such as "package.module"; those that do not exist, or are loaded, stay so.
    """
    finder = _PostponingFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _PostponingFinder(importlib.abc.MetaPathFinder):
    def __init__(self, names: Sequence[str]):
        self.names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
