"""A Python file of the user's, loaded with its neighbours and beside everything installed.

Python runs a file with its folder at the front of ``sys.path``, so that ``import layers`` finds
what lies beside it. Doing the same here would let a user's ``queue.py`` or ``utils.py`` take the
place of modules that torch imports later. So the user's modules get names of their own, under one
that no one else has, and the import statements in them are rewritten to these names. That holds for
imports within functions too, whenever these run.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

#: Begins the name of every module that is loaded here.
_PREFIX = "ditc_model_"

_numbers = itertools.count()


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module; where it fails it leaves nothing behind.

    Files in packages may import relative to them. The modules stay in ``sys.modules`` under names
    that begin with ``ditc_model_``, where dataclasses and Dynamo look for them.

    Raises:
        Exception: whatever the file raises.
    """
    importlib.invalidate_caches()  # files may be newer than what Python knows of their folder
    path = path.resolve()
    folder, packages = _packages(path)
    inside = packages if path.name == "__init__.py" else [*packages, _identifier(path.stem)]
    if packages and _is_importable(packages[0], folder):
        return importlib.import_module(".".join(inside))
    root = _Root(f"{_PREFIX}{_identifier(path.stem)}_{next(_numbers)}", folder, packages)
    _roots[root.name] = root
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    try:
        return root.load(path, inside)
    except BaseException:
        root.forget()
        raise


def own_name(text: str) -> str:
    """``text`` with the user's modules under the names that the user gave them."""
    return re.sub(rf"\b{_PREFIX}\w+?_\d+\.", "", text)


@dataclass
class _Root:
    """What modules of one load are under.

    Attributes:
        name: the name that stands in front of all of theirs.
        folder: where top-level modules are looked for.
        packages: the packages that the file is in, from the outermost.
    """

    name: str
    folder: Path
    packages: Sequence[str]
    _homes: dict[str, str | None] = field(default_factory=dict)

    def load(self, path: Path, inside: Sequence[str]) -> ModuleType:
        package = ModuleType(self.name)
        package.__path__ = [str(self.folder)]
        sys.modules[self.name] = package
        name = ".".join([self.name, *inside])
        if path.stem == inside[-1] or path.name == "__init__.py":
            return importlib.import_module(name)
        importlib.import_module(name.rpartition(".")[0])
        spec = ModuleSpec(name, _Loader(name, str(path), self), origin=str(path))
        spec.has_location = True
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        assert spec.loader is not None
        spec.loader.exec_module(module)
        return module

    def forget(self) -> None:
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{self.name}.")]:
            del sys.modules[name]
        del _roots[self.name]

    def home(self, top: str) -> str | None:
        """What the name of top-level module ``top`` is under, ``None`` if Python's own is meant."""
        if top not in self._homes:
            self._homes[top] = self._find(top)
        return self._homes[top]

    def _find(self, top: str) -> str | None:
        """As for a script: first what is beside it, then what is installed, Python's own before.

        A plain folder is a namespace, which stands behind every module. For files in packages their
        own folder comes last: there ``import types`` is rarely meant to find ``types.py``.
        """
        if top in sys.stdlib_module_names or _is_importable(top, self.folder):
            return None
        beside = PathFinder.find_spec(top, [str(self.folder)])
        if beside is not None and beside.origin is not None:
            return self.name
        if _installed(top) is not None:
            return None
        if beside is not None:
            return self.name
        own = self.folder.joinpath(*self.packages)
        found = self.packages and PathFinder.find_spec(top, [str(own)])
        return ".".join([self.name, *self.packages]) if found else None


_roots: dict[str, _Root] = {}


class _Finder:
    """Finds modules under a root, and has their imports rewritten."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root = _roots.get(name.partition(".")[0])
        spec = PathFinder.find_spec(name, path, target) if root and path else None
        if root and spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, root)
            spec.cached = None
        return spec


class _Loader(SourceFileLoader):
    """Compiles a file with its imports rewritten; neither reads nor writes bytecode."""

    def __init__(self, name: str, path: str, root: _Root) -> None:
        super().__init__(name, path)
        self._root = root

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path), self.path)
        tree = ast.fix_missing_locations(_Imports(self._root).visit(tree))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Imports(ast.NodeTransformer):
    """Puts a root's name in front of the modules that are under it."""

    def __init__(self, root: _Root) -> None:
        self._root = root

    def visit_Import(self, node: ast.Import) -> list[ast.Import]:
        return [
            ast.copy_location(ast.Import([alias]), node)
            for given in node.names
            for alias in self._renamed(given)
        ]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        home = self._home(node.module) if node.module and node.level == 0 else None
        if home is not None:
            node.module = f"{home}.{node.module}"
        return node

    def _renamed(self, alias: ast.alias) -> Iterator[ast.alias]:
        """``import a.b`` loads ``a.b`` and binds ``a``, so it becomes two."""
        home = self._home(alias.name)
        if home is None:
            yield alias
            return
        top = alias.name.partition(".")[0]
        yield ast.alias(f"{home}.{alias.name}", alias.asname or top)
        if alias.asname is None and top != alias.name:
            yield ast.alias(f"{home}.{top}", top)

    def _home(self, module: str) -> str | None:
        return self._root.home(module.partition(".")[0])


def _packages(path: Path) -> tuple[Path, list[str]]:
    """The folder that top-level modules are in, and the packages from there to ``path``."""
    folder, packages = path.parent, list[str]()
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        packages.insert(0, folder.name)
        folder = folder.parent
    return folder, packages


def _is_importable(top: str, folder: Path) -> bool:
    """Whether Python itself finds the module or package ``top`` in ``folder``."""
    spec = _installed(top)
    beside = PathFinder.find_spec(top, [str(folder)])
    if spec is None or beside is None or spec.origin is None or beside.origin is None:
        return False
    return Path(spec.origin).resolve() == Path(beside.origin).resolve()


def _installed(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # the latter where a module has no spec, as __main__
        return None


def _identifier(stem: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", stem)
