"""Imports Gradio without the stub files of its components."""

import contextlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

WRITER = "gradio.component_meta"


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Inside the context, an import of Gradio writes no stub files (.pyi) for code editors.

    For them it would parse the source of each component, which takes half of the import's time.
    """
    finder = _WriterFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _WriterFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == WRITER else None
        if spec is not None:
            spec.loader = _WriterLoader(name, spec.origin)
        return spec


class _WriterLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.create_or_modify_pyi = lambda *_: None
