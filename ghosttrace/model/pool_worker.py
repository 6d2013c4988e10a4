"""A worker on a Ray cluster that holds a checkpoint, and the functions that are sent to it without the model."""

import asyncio
import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import torch

from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import Checkpoint, fingerprint, load_tokenizer, load_weights

Sent = tuple[Any, list[Any]]
"""A pickled object, and the references of Ray in it."""

NOT_COMPARED = ("_name_or_path", "dtype", "transformers_version")
"""Entries of a configuration that may differ between machines: path, requested dtype, version of transformers."""


@dataclass(frozen=True)
class CheckpointSource:
    """What a worker needs to load the checkpoint of this process.

    Attributes:
        name: bundled name, folder or hub id.
        dtype: data type of the weights, such as `float32`.
        fingerprint: hashes of weights, vocabulary, chat template and configuration, see `full_fingerprint`.
        markup, policy, stages, other_law: as in `Checkpoint`.
    """

    name: str
    dtype: str
    fingerprint: Mapping[str, str]
    markup: Markup
    policy: Policy
    stages: tuple[str, ...]
    other_law: Law | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "CheckpointSource":
        """Describe a loaded checkpoint."""
        dtype = str(checkpoint.model.dtype).removeprefix("torch.")
        kept = (checkpoint.markup, checkpoint.policy, checkpoint.stages, checkpoint.other_law)
        return cls(checkpoint.name, dtype, full_fingerprint(checkpoint), *kept)

    def load(self, device: str) -> Checkpoint:
        """Load the checkpoint.

        Raises:
            UserError: this machine has no such model, or one with other weights.
        """
        try:
            tokenizer, model = load_tokenizer(self.name), load_weights(self.name, device, self.dtype)
        except UserError as error:
            raise UserError(f"{error}; every machine must see the model under the same name") from error
        loaded = Checkpoint(self.name, model, tokenizer, self.markup, self.policy, self.stages, self.other_law)
        found = full_fingerprint(loaded)
        other = [name for name, value in self.fingerprint.items() if found[name] != value]
        if other:
            raise UserError(
                f"{self.name} differs in {', '.join(other)} from the checkpoint of the process that started the run: "
                "put the same files on all machines, and change nothing after loading"
            )
        return loaded


def full_fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the hashes of `ghosttrace.model.checkpoint.fingerprint`, and of all else that a worker loads itself."""
    model: Any = checkpoint.model
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_COMPARED}
    stops = model.generation_config.eos_token_id
    others = {"chat template": checkpoint.tokenizer.chat_template, "configuration": (sorted(config.items()), stops)}
    return fingerprint(checkpoint) | {name: sha256(repr(each).encode()).hexdigest() for name, each in others.items()}


class ModelWorker:
    """Actor that holds a checkpoint and calls functions with it, one at a time.

    Args:
        source: the checkpoint to load.
        device: device of the model.
        threads: for each machine, by its name in Ray, the number of CPU threads of a worker.
    """

    def __init__(self, source: CheckpointSource, device: str, threads: Mapping[str, int]) -> None:
        import ray

        self._source, self._device = source, device
        number = threads.get(ray.get_runtime_context().get_node_id(), 1)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(number,))
        self._functions: dict[int, Callable[[Any], Any]] = {}

    async def open(self) -> None:
        """Load the checkpoint.

        Raises:
            UserError: this machine has no such model, or one with other weights.
        """
        loop = asyncio.get_running_loop()
        self._checkpoint = await loop.run_in_executor(self._thread, self._source.load, self._device)

    async def call(self, number: int, function: Sent, unit: Sent) -> Any:
        """Return the result of a function for a unit of work; the items of a generator as a list.

        Args:
            number: number of the function; the worker keeps the last one.
            function: the function, as `pickle_without_model` returns it; the bytes may be a reference of Ray to them.
            unit: its argument, as `pickle_without_model` returns it.
        """
        import ray

        if number not in self._functions:
            data, references = function
            data = await data if isinstance(data, ray.ObjectRef) else data
            self._functions = {number: unpickle_with_model(data, self._checkpoint, references)}
        called = partial(_all_items, self._functions[number], unpickle_with_model(unit[0], self._checkpoint, unit[1]))
        return await asyncio.get_running_loop().run_in_executor(self._thread, called)


def _all_items(function: Callable[[Any], Any], unit: Any) -> Any:
    result = function(unit)
    return list(result) if isinstance(result, Iterator) else result


def pickle_without_model(obj: Any, checkpoint: Checkpoint) -> tuple[bytes, list[Any]]:
    """Return an object as bytes that leave out the model and the tokenizer of a checkpoint; tensors go to the CPU.

    Returns:
        The bytes, and Ray's references in the object, which Ray must see on their way to a worker.

    Raises:
        UserError: something in the object cannot be pickled.
    """
    import ray

    left_out = {id(checkpoint.model): "model", id(checkpoint.tokenizer): "tokenizer"}
    references: list[Any] = []

    class Pickler(ray.cloudpickle.CloudPickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> str | int | None:
            if isinstance(obj, ray.ObjectRef):
                references.append(obj)
                return len(references) - 1
            return left_out.get(id(obj))

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, torch.Tensor) and obj.device.type != "cpu":  # a worker may lack this device
                return obj.cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    try:
        Pickler(buffer).dump(obj)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(f"a part of this run cannot be sent to workers ({error}): run it without --ray") from error
    return buffer.getvalue(), references


def unpickle_with_model(data: bytes, checkpoint: Checkpoint, references: Sequence[Any]) -> Any:
    """Return the object that `pickle_without_model` has pickled, with the model and tokenizer of a checkpoint."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, identifier: str | int) -> Any:
            return references[identifier] if isinstance(identifier, int) else getattr(checkpoint, identifier)

    return Unpickler(io.BytesIO(data)).load()
