"""The table of vLLM's private names, compared with the installed version and with sources."""

import inspect
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments.check_vllm_sources import compare, open_sources
from ghosttrace.errors import UserError
from ghosttrace.serving.vllm import private_api_check
from ghosttrace.serving.vllm.private_api import SUPPORTED_VERSIONS, Component, PrivateName, private_names

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")


class Scheduler:
    """Stub of a vLLM class."""

    def __init__(self) -> None:
        self.running: list[Any] = []

    def schedule(self, throttle_prefills: bool = False, *, urgent: bool = False) -> None:
        """A method with one parameter more than expected."""

    @classmethod
    def validate(cls, params: Any, **more: Any) -> None:
        """A class method of the stub."""


@pytest.fixture(autouse=True)
def clear_check_cache() -> Iterator[None]:
    """Clear the cached results before and after every test, because tests replace the table."""
    private_api_check.check_component.cache_clear()
    yield
    private_api_check.check_component.cache_clear()


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a module `vllm_like` with the stub class."""
    module = ModuleType("vllm_like")
    module.Scheduler = Scheduler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm_like", module)


def seam(name: str, parameters: str | None, owner: str = "Scheduler", module: str = "vllm_like") -> PrivateName:
    return PrivateName("scheduler", module, owner, name, None if parameters is None else tuple(parameters.split()))


def test_expected_signatures_pass(fake_vllm: None) -> None:
    private_api_check.check_name(seam("schedule", "self throttle_prefills urgent"), "0.32.0")
    private_api_check.check_name(seam("validate", "cls params **more"), "0.32.0")
    private_api_check.check_name(seam("running", None), "0.32.0")


@pytest.mark.parametrize(
    "moved, expected_part",
    [
        (seam("schedule", "self throttle_prefills"), "now has the parameters (self, throttle_prefills, urgent)"),
        (seam("_free_blocks", "self request"), "vllm_like.Scheduler._free_blocks(self, request) is missing"),
        (seam("schedule", "self", owner="OtherScheduler"), "OtherScheduler.schedule(self) is missing"),
        (seam("schedule", "self", module="vllm_unlike"), "vllm_unlike.Scheduler.schedule(self) is missing"),
        (seam("waiting", None), "vllm_like.Scheduler.waiting is missing"),
    ],
)
def test_changed_signatures_are_refused(fake_vllm: None, moved: PrivateName, expected_part: str) -> None:
    with pytest.raises(UserError) as refused:
        private_api_check.check_name(moved, "0.32.0")
    message = str(refused.value)
    assert message.startswith("in vLLM 0.32.0, vllm_") and expected_part in message
    assert message.endswith("install a supported version with `pip install 'vllm>=0.32,<0.34'`")
    assert "\n" not in message and ". " not in message


def set_vllm_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Set the reported version of vLLM."""
    module = ModuleType("vllm")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    private_api_check.check_component.cache_clear()


def test_check_uses_the_table_of_the_installed_version(fake_vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"0.32": [seam("schedule", "self")], "0.33": [seam("running", None)]}
    monkeypatch.setattr(private_api_check, "private_names", tables.__getitem__)
    set_vllm_version(monkeypatch, "0.33.1")
    private_api_check.check_component("scheduler")
    set_vllm_version(monkeypatch, "0.32.0+cpu")
    with pytest.raises(UserError, match=r"in vLLM 0\.32\.0\+cpu, vllm_like\.Scheduler\.schedule"):
        private_api_check.check_component("scheduler")
    private_api_check.check_component("worker")  # no entry of these tables


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "dev"])
def test_untested_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_vllm_version(monkeypatch, version)
    with pytest.raises(UserError, match=f"does not support vLLM {version}: install a supported version"):
        private_api_check.check_component("scheduler")


def test_backend_with_other_parameters_is_refused() -> None:
    class Good:
        def do_kv_cache_update(self, layer: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any) -> None: ...

    class Other:
        def do_kv_cache_update(self) -> None: ...

    private_api_check.check_backend(Good)
    for backend in (Other, Scheduler):
        with pytest.raises(UserError, match="choose another --attention-backend"):
            private_api_check.check_backend(backend)


def test_tables_of_versions_differ_in_known_changes() -> None:
    old, new = (set(private_names(version)) for version in SUPPORTED_VERSIONS)
    assert {entry.name for entry in old ^ new} == {"get_computed_blocks", "gather_block_tables"}
    assert len(old) == len(new) == len(private_names("0.32"))


def sources(parameters: str) -> str:
    """Return a module that defines `KVCacheManager.cache_blocks` with these parameters, and little else."""
    attributes = "    def __init__(self):\n        self.coordinator = self.block_pool = 1\n"
    return f"class KVCacheManager:\n{attributes}\n    def cache_blocks({parameters}): ...\n"


@pytest.mark.parametrize("kind", ["folder", "wheel"])
def test_sources_are_compared_without_importing_them(kind: str, tmp_path: Path) -> None:
    text = sources("self, request, tokens") + "raise RuntimeError\n"
    path = tmp_path / "vllm" / "v1" / "core" / "kv_cache_manager.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if kind == "wheel":
        with zipfile.ZipFile(tmp_path / "vllm.whl", "w") as wheel:
            wheel.write(path, path.relative_to(tmp_path))
    sentences = compare(open_sources(tmp_path / "vllm.whl" if kind == "wheel" else tmp_path), "0.32")
    about = [sentence for sentence in sentences if "KVCacheManager." in sentence and "SingleType" not in sentence]
    moved = "KVCacheManager.cache_blocks(self, request, num_computed_tokens): it now takes (self, request, tokens)"
    assert any(sentence.endswith(moved) for sentence in about) and not any("coordinator" in line for line in about)
    assert sum("there is no such class" in sentence for sentence in sentences) > 50


def test_missing_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor a wheel"):
        open_sources(tmp_path / "vllm.whl")


@needs_vllm
@pytest.mark.parametrize("part", ["scheduler", "worker", "runner", "reasoning"])
def test_installed_vllm_passes(part: Component) -> None:
    """Without the V2 runner, which needs Triton: its sources are compared below, and it runs in `test_vllm.py`."""
    private_api_check.check_component(part)


@needs_vllm
def test_sources_of_the_installed_vllm_pass() -> None:
    import vllm

    version = ".".join(vllm.__version__.split(".")[:2])
    assert compare(open_sources(Path(vllm.__file__).parent), version) == []
    assert all(
        compare(open_sources(Path(vllm.__file__).parent), other) for other in SUPPORTED_VERSIONS if other != version
    )


@needs_vllm
@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_our_overrides_accept_the_parameters_of_every_version(version: str) -> None:
    from ghosttrace.serving.vllm.kv_cache_manager import ErasingKVCacheManager
    from ghosttrace.serving.vllm.runner_v1 import ErasingRunnerMixinV1
    from ghosttrace.serving.vllm.runner_v2 import ErasingRunnerMixinV2
    from ghosttrace.serving.vllm.scheduler import ErasingSchedulerBase

    overriding_classes = {
        "vllm.v1.core.sched.scheduler.Scheduler": ErasingSchedulerBase,
        "vllm.v1.core.kv_cache_manager.KVCacheManager": ErasingKVCacheManager,
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner": ErasingRunnerMixinV1,
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner": ErasingRunnerMixinV2,
    }
    bound = 0
    for entry in private_names(version):
        method = vars(overriding_classes.get(f"{entry.module}.{entry.owner}", object)).get(entry.name)
        if method is not None and entry.parameters is not None:
            inspect.signature(method).bind(*entry.parameters)
            bound += 1
    assert bound >= 15
