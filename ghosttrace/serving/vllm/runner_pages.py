"""What the erasing V1 and V2 model runners share: a `PageMover` for the pages of their layers."""

from typing import Any

from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.page_mover import PageMover
from ghosttrace.serving.vllm.private_api_check import check_backend


class PageMoverMixin:
    """A mixin that makes the runner's `PageMover` as soon as it has pages."""

    _mover: PageMover

    def initialize_kv_cache(self: Any, kv_cache_config: Any, is_profiling: bool = False, **options: Any) -> None:
        """Allocate pages, and find their layout."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **options)  # type: ignore[misc]
        if not is_profiling:
            self._mover = make_mover(self)

    def page_size(self: Any) -> int:
        """Return the slots of a page in the one group of layers; see `engine_checks.check_pages`."""
        (group,) = self.kv_cache_config.kv_cache_groups
        size: int = group.kv_cache_spec.block_size
        return size


def make_mover(runner: Any) -> PageMover:
    """Return a mover for the one group of layers of a runner; see `engine_checks.check_pages`.

    Raises:
        UserError: the attention depends on distances in the cache, or the pages cannot be compacted.
    """
    (group,) = runner.kv_cache_config.kv_cache_groups
    context = runner.compilation_config.static_forward_context
    layers = [context[name] for name in group.layer_names]
    if any(getattr(layer.impl, "alibi_slopes", None) is not None for layer in layers):
        raise UserError("this model weighs keys by how far back they lie (ALiBi), which erasure changes: use another")
    for backend in {type(layer.impl) for layer in layers}:
        check_backend(backend)
    return PageMover(layers)
