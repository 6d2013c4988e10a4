"""Comparison of the tables in `private_api.py` with the installed vLLM."""

import ast
import inspect
import textwrap
from argparse import ArgumentParser
from functools import lru_cache
from importlib import import_module
from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.private_api import (
    INSTALL_HINT,
    KV_UPDATE_PARAMETERS,
    SERVER_PARSER,
    SUPPORTED_VERSIONS,
    Component,
    PrivateName,
    private_names,
)


@lru_cache
def check_component(component: Component) -> None:
    """Compare the private names that a component uses with the installed vLLM.

    Raises:
        UserError: if the version of vLLM is not supported, or one of the names is missing or has changed.
    """
    from vllm import __version__

    version = ".".join(__version__.split(".")[:2])
    if version not in SUPPORTED_VERSIONS:
        raise UserError(f"GhostTrace does not support vLLM {__version__}: {INSTALL_HINT}")
    for private_name in private_names(version):
        if private_name.component == component:
            check_name(private_name, __version__)


def check_name(private_name: PrivateName, version: str) -> None:
    """Compare one private name with the installed vLLM.

    Args:
        private_name: the name that GhostTrace expects.
        version: installed version of vLLM, for the error message.

    Raises:
        UserError: if the name is missing or has other parameters.
    """
    owner = _find(private_name.module, private_name.owner)
    parameters = None if owner is None else installed_parameters(owner, private_name.name)
    if private_name.parameters is None:
        changed = owner is None or not any(private_name.name in _attributes_of(base) for base in owner.__mro__)
    else:
        changed = parameters != private_name.parameters
    if changed:
        change = "is missing"
        if parameters and private_name.parameters:
            change = f"now has the parameters ({', '.join(parameters)})"
        raise UserError(f"in vLLM {version}, {private_name} {change}: {INSTALL_HINT}")


def check_backend(backend: type) -> None:
    """Compare an attention backend's `do_kv_cache_update` with `KV_UPDATE_PARAMETERS`.

    Raises:
        UserError: if the method is missing or has other parameters.
    """
    if installed_parameters(backend, "do_kv_cache_update") != KV_UPDATE_PARAMETERS:
        raise UserError(
            f"{backend.__name__} has no do_kv_cache_update({', '.join(KV_UPDATE_PARAMETERS)}), which erasure needs: "
            f"choose another --attention-backend, or {INSTALL_HINT}"
        )


def make_server_parser() -> ArgumentParser:
    """Return the parser of vLLM's server.

    Raises:
        UserError: if the installed vLLM does not have it where GhostTrace expects it.
    """
    found = [_find(module, name) for module, name in SERVER_PARSER.items()]
    for (module, name), value in zip(SERVER_PARSER.items(), found, strict=True):
        if value is None:
            raise UserError(f"vLLM has no {module}.{name}: {INSTALL_HINT}")
    make_parser, parser_class = found
    parser: ArgumentParser = make_parser(parser_class())
    return parser


def installed_parameters(owner: type, name: str) -> tuple[str, ...] | None:
    """Return the parameter names of a method, with `*` and `**`; None if the class has no such method."""
    member = inspect.getattr_static(owner, name, None)
    function = getattr(member, "__func__", member)  # unwrap class methods
    if not callable(function):
        return None
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return tuple(
        stars.get(parameter.kind, "") + parameter.name for parameter in inspect.signature(function).parameters.values()
    )


def class_attributes(owner: ast.ClassDef) -> set[str]:
    """Return the names that a class's source defines: methods, annotated fields, and attributes of `self`."""
    names = {node.name for node in owner.body if isinstance(node, ast.FunctionDef)}
    names |= {
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return names | {
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def _find(module: str, owner: str) -> Any:
    """Return a class or function of the installed vLLM; None if its module or the name is missing."""
    try:
        return getattr(import_module(module), owner, None)
    except ModuleNotFoundError:
        return None


@lru_cache
def _attributes_of(owner: type) -> set[str]:
    """Return `class_attributes` of a class, empty if its source is not available."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):  # built-in classes have no source
        return set()
    return class_attributes(node) if isinstance(node, ast.ClassDef) else set()
