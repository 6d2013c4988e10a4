"""Code shared by the erasing V1 and V2 model runners: creation of the `PageMover` for their pages."""

from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.page_mover import PageMover
from ghosttrace.serving.vllm.private_api_check import check_backend


class PageMoverMixin:
    """Mixin for model runners that creates a `PageMover` once the pages are allocated."""

    _mover: PageMover

    def initialize_kv_cache(self: Any, kv_cache_config: Any, is_profiling: bool = False, **options: Any) -> None:
        """Allocate the pages and determine their layout."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **options)  # type: ignore[misc]
        if not is_profiling:
            self._mover = make_mover(self)

    def page_size(self: Any) -> int:
        """Return the number of slots in a page; there is one group of layers, see `engine_checks.check_pages`."""
        (group,) = self.kv_cache_config.kv_cache_groups
        size: int = group.kv_cache_spec.block_size
        return size


def make_mover(runner: Any) -> PageMover:
    """Return a page mover for the layers of a runner; there is one group of layers, see `engine_checks.check_pages`.

    Raises:
        UserError: if attention depends on distances between slots (ALiBi), or the pages cannot be compacted.
    """
    (group,) = runner.kv_cache_config.kv_cache_groups
    context = runner.compilation_config.static_forward_context
    layers = [context[name] for name in group.layer_names]
    if any(getattr(layer.impl, "alibi_slopes", None) is not None for layer in layers):
        raise UserError("erasure does not support ALiBi, which depends on distances between slots: use another model")
    for backend in {type(layer.impl) for layer in layers}:
        check_backend(backend)
    return PageMover(layers)
