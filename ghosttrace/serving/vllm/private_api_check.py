"""Compares the table in `private_api.py` with the installed vLLM."""

import ast
import inspect
import textwrap
from functools import lru_cache
from importlib import import_module
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.private_api import (
    INSTALL_HINT,
    KV_UPDATE_PARAMETERS,
    SUPPORTED_VERSIONS,
    Component,
    PrivateName,
    private_names,
)


@lru_cache
def check_component(component: Component) -> None:
    """Compare the seams of one part with the installed vLLM.

    Raises:
        UserError: the version was not tried, or one of the seams has moved.
    """
    from vllm import __version__

    version = ".".join(__version__.split(".")[:2])
    if version not in SUPPORTED_VERSIONS:
        raise UserError(f"GhostTrace was not tried with vLLM {__version__}: {INSTALL_HINT}")
    for seam in private_names(version):
        if seam.component == component:
            check_name(seam, __version__)


def check_name(seam: PrivateName, version: str) -> None:
    """Compare one seam with the installed vLLM.

    Raises:
        UserError: it has moved.
    """
    owner = _find(seam.module, seam.owner)
    found = None if owner is None else installed_parameters(owner, seam.name)
    if seam.parameters is None:
        moved = owner is None or not any(seam.name in _attributes_of(base) for base in owner.__mro__)
    else:
        moved = found != seam.parameters
    if moved:
        now = f", which now takes ({', '.join(found)})" if found and seam.parameters else ", which is gone"
        raise UserError(f"vLLM {version} has moved {seam}{now}: {INSTALL_HINT}")


def check_backend(backend: type) -> None:
    """Compare an attention backend's `do_kv_cache_update` with `KV_UPDATE_PARAMETERS`.

    Raises:
        UserError: it is missing or has other parameters.
    """
    if installed_parameters(backend, "do_kv_cache_update") != KV_UPDATE_PARAMETERS:
        raise UserError(
            f"{backend.__name__} has no do_kv_cache_update({', '.join(KV_UPDATE_PARAMETERS)}), by which the layout of pages is "
            f"found: choose another --attention-backend, or {INSTALL_HINT}"
        )


def installed_parameters(owner: type, name: str) -> tuple[str, ...] | None:
    """Return the parameter names of a class's method, as `inspect.signature` sees them; None without such a method."""
    member = inspect.getattr_static(owner, name, None)
    function = getattr(member, "__func__", member)  # of a class method
    if not callable(function):
        return None
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return tuple(stars.get(one.kind, "") + one.name for one in inspect.signature(function).parameters.values())


def class_attributes(owner: ast.ClassDef) -> set[str]:
    """Return the names that a class's source defines: methods, annotated fields, and whatever is assigned to `self`."""
    found = {node.name for node in owner.body if isinstance(node, ast.FunctionDef)}
    found |= {
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return found | {
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def _find(module: str, owner: str) -> Any:
    try:
        return getattr(import_module(module), owner, None)
    except ModuleNotFoundError:
        return None


@lru_cache
def _attributes_of(owner: type) -> set[str]:
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):  # a builtin class has no source
        return set()
    return class_attributes(node) if isinstance(node, ast.ClassDef) else set()
