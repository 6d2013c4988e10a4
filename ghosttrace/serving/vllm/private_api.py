"""Tables of all private or unstable names of vLLM that GhostTrace overrides, calls or reads.

vLLM may change these names in any version. The tables record them for each supported version. `private_api_check.py`
compares them with the installed version before an engine starts. `experiments/check_vllm_sources.py` compares them with
the sources of any version, without importing them.

GhostTrace replaces two objects of vLLM:

- The model runner: `Worker._make_model_runner` creates it, and vLLM permits subclasses to override this method.
- The KV-cache manager: `Scheduler.__init__` creates it by its class name and passes it on, and there is no method to
  override. Therefore `ErasingSchedulerBase` assigns its `__class__`. A second manager would have to repeat vLLM's
  arguments, and a wrapper would not intercept the calls that the manager makes to its own methods.
"""

from typing import Literal, NamedTuple

SUPPORTED_VERSIONS = ("0.32", "0.33")
INSTALL_HINT = "install a supported version with `pip install 'vllm>=0.32,<0.34'`"
Component = Literal["scheduler", "worker", "runner", "runner_v2", "reload", "reasoning"]


class PrivateName(NamedTuple):
    """Private or unstable name of vLLM: a method or an attribute of a class.

    Attributes:
        component: component of GhostTrace that depends on the name.
        module: module of the class.
        owner: name of the class.
        name: name of the method or attribute.
        parameters: parameter names of a method in order; None for an attribute.
    """

    component: Component
    module: str
    owner: str
    name: str
    parameters: tuple[str, ...] | None

    def __str__(self) -> str:
        """Return the full name with its parameters, for messages."""
        signature = "" if self.parameters is None else f"({', '.join(self.parameters)})"
        return f"{self.module}.{self.owner}.{self.name}{signature}"


METHOD_PARAMETERS: dict[Component, dict[str, dict[str, str]]] = {
    "scheduler": {
        "vllm.v1.core.sched.scheduler.Scheduler": {
            "__init__": "self vllm_config kv_cache_config structured_output_manager block_size hash_block_size "
            "mm_registry include_finished_set log_stats",
            "schedule": "self throttle_prefills",
            "add_request": "self request",
            "_reserve_prefill_lookahead": "self request num_computed_tokens num_new_tokens",
            "_preempt_request": "self request timestamp drop_stale_output",
            "_free_blocks": "self request",
        },
        "vllm.v1.core.kv_cache_manager.KVCacheManager": {
            "get_computed_blocks": "self request",
            "allocate_slots": "self request num_new_tokens num_new_computed_tokens new_computed_blocks "
            "num_lookahead_tokens num_external_computed_tokens delay_cache_blocks num_encoder_tokens "
            "full_sequence_must_fit reserved_blocks has_scheduled_reqs skip_zeroing_group_ids",
            "cache_blocks": "self request num_computed_tokens",
            "truncate_computed_blocks": "self blocks num_computed_tokens",
        },
        "vllm.v1.core.block_pool.BlockPool": {"free_blocks": "self ordered_blocks"},
    },
    "worker": {
        "vllm.v1.worker.gpu_worker.Worker": {"init_device": "self", "_make_model_runner": "self"},
        "vllm.v1.sample.logits_processor.AdapterLogitsProcessor": {
            "__init__": "self vllm_config device is_pin_memory",
            "new_req_logits_processor": "self params",
            "apply": "self logits",
        },
        "vllm.v1.sample.logits_processor.interface.LogitsProcessor": {
            "validate_params": "cls sampling_params",
            "is_argmax_invariant": "self",
        },
        "vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsProcessor": {
            "__init__": "self vllm_config req_states",
            "validate_params": "cls sampling_params",
            "add_request": "self req_idx sampling_params",
            "apply": "self logits ctx",
        },
    },
    "reload": {
        "vllm.v1.worker.gpu_worker.Worker": {"reload_weights": "self *args **kwargs"},
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner": {"get_model": "self"},
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner": {"get_model": "self"},
        "vllm.model_executor.layers.vocab_parallel_embedding.UnquantizedEmbeddingMethod": {
            "process_weights_after_loading": "self layer",
        },
    },
    "runner": {
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner": {
            "__init__": "self vllm_config device",
            "initialize_kv_cache": "self kv_cache_config is_profiling kv_cache_allocation_context",
            "_update_states": "self scheduler_output",
            "_prepare_inputs": "self scheduler_output num_scheduled_tokens",
            "_sample": "self logits spec_decode_metadata",
            "_bookkeeping_sync": "self scheduler_output sampler_output logits hidden_states num_scheduled_tokens",
        },
        "vllm.v1.worker.block_table.MultiGroupBlockTable": {
            "add_row": "self block_ids row_idx",
            "compute_slot_mapping": "self num_reqs query_start_loc positions",
        },
    },
    "runner_v2": {
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner": {
            "__init__": "self vllm_config device",
            "initialize_kv_cache": "self kv_cache_config is_profiling kv_cache_allocation_context",
            "update_requests": "self scheduler_output",
            "prepare_attn": "self input_batch",
            "sample": "self hidden_states input_batch grammar_output",
        },
        "vllm.v1.worker.gpu.block_table.BlockTables": {  # called by vLLM's `prepare_attn` after compaction
            "gather_block_tables": "self idx_mapping num_reqs_padded out out_ptrs",
        },
        "vllm.v1.worker.gpu.buffer_utils.StagedWriteTensor": {
            "stage_write_elem": "self index x",
            "apply_write": "self",
        },
        "vllm.v1.worker.gpu.buffer_utils.UvaBackedTensor": {"copy_to_uva": "self n"},
    },
    "reasoning": {
        "vllm.reasoning.abs_reasoning_parsers.ReasoningParser": {
            "__init__": "self tokenizer *args **kwargs",
            "adjust_request": "self request",
            "is_reasoning_end": "self input_ids",
            "extract_content_ids": "self input_ids",
            "extract_reasoning": "self model_output request",
            "extract_reasoning_streaming": "self previous_text current_text delta_text previous_token_ids "
            "current_token_ids delta_token_ids",
        },
        "vllm.reasoning.abs_reasoning_parsers.ReasoningParserManager": {
            "register_lazy_module": "cls name module_path class_name",
        },
    },
}
"""Parameters of each method in vLLM 0.32, by component and class."""

CHANGED_PARAMETERS: dict[str, dict[str, str]] = {
    "0.33": {
        "vllm.v1.core.kv_cache_manager.KVCacheManager.get_computed_blocks": "self request max_cache_hit_length",
        "vllm.v1.worker.gpu.block_table.BlockTables.gather_block_tables": "self idx_mapping num_reqs_padded out "
        "out_ptrs num_computed_tokens",
    }
}
"""Parameters of methods that differ in a later version, by version and method."""

ATTRIBUTES: dict[Component, dict[str, str]] = {
    "scheduler": {
        "vllm.v1.core.sched.scheduler.Scheduler": "vllm_config kv_cache_config kv_cache_manager running "
        "encoder_cache_mismatch_reqs",
        "vllm.v1.core.kv_cache_manager.KVCacheManager": "coordinator block_pool",
        "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator": "single_type_managers",
        "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager": "block_size req_to_blocks",
        "vllm.v1.core.sched.output.SchedulerOutput": "num_scheduled_tokens total_num_scheduled_tokens",
        "vllm.v1.request.Request": "request_id num_tokens num_computed_tokens sampling_params resumable _all_token_ids",
        "vllm.v1.kv_cache_interface.KVCacheConfig": "kv_cache_groups",
        "vllm.v1.kv_cache_interface.KVCacheGroupSpec": "kv_cache_spec layer_names",
    },
    "worker": {
        "vllm.v1.worker.gpu_worker.Worker": "use_v2_model_runner",
        "vllm.v1.worker.worker_base.WorkerBase": "vllm_config device",
        "vllm.config.compilation.CompilationConfig": "static_forward_context",
        "vllm.model_executor.layers.attention.attention.Attention": "impl kv_cache",
        "vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsProcRequestState": "all_token_ids prompt_len",
        "vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsContext": "idx_mapping_np seq_lens_upper_bound_np",
    },
    "runner": {
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner": "compilation_config device requests input_batch seq_lens "
        "kv_cache_config optimistic_seq_lens_cpu req_indices positions query_start_loc discard_request_mask",
        "vllm.v1.worker.gpu_input_batch.InputBatch": "req_ids req_id_to_index num_reqs block_table generators",
        "vllm.v1.worker.gpu_input_batch.CachedRequestState": "block_ids",
        "vllm.v1.utils.CpuGpuBuffer": "gpu np",
    },
    "runner_v2": {
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner": "compilation_config device kv_cache_config req_states "
        "block_tables",
        "vllm.v1.worker.gpu.states.RequestState": "req_id_to_index num_computed_tokens prefill_len",
        "vllm.v1.worker.gpu.block_table.BlockTables": "block_tables num_blocks",
        "vllm.v1.worker.gpu.buffer_utils.StagedWriteTensor": "gpu",
        "vllm.v1.worker.gpu.buffer_utils.UvaBackedTensor": "np",
        "vllm.v1.worker.gpu.input_batch.InputBatch": "req_ids num_reqs num_tokens num_scheduled_tokens positions "
        "seq_lens seq_lens_cpu_upper_bound",
    },
    "reasoning": {
        "vllm.reasoning.abs_reasoning_parsers.ReasoningParser": "vocab model_tokenizer _model_config",
        "vllm.entrypoints.generate.base.protocol.DeltaMessage": "reasoning content",
    },
}
"""Attributes that GhostTrace reads or writes, by component and class; the same in all supported versions."""

SERVER_PARSER = {
    "vllm.entrypoints.launchers.cli_args": "make_arg_parser",
    "vllm.utils.argparse_utils": "FlexibleArgumentParser",
}
"""Function and class that make the parser of vLLM's server, by module; they must agree with `vllm serve`."""

KV_UPDATE_PARAMETERS = ("self", "layer", "key", "value", "kv_cache", "slot_mapping")
"""Parameters of the attention backends' method `do_kv_cache_update`, which `PageMover` calls."""


def private_names(version: str) -> list[PrivateName]:
    """Return the private names that GhostTrace uses in a version of `SUPPORTED_VERSIONS`."""
    changed, private = CHANGED_PARAMETERS.get(version, {}), list[PrivateName]()
    for component, classes in METHOD_PARAMETERS.items():
        for path, methods in classes.items():
            module, _, owner = path.rpartition(".")
            for name, parameters in methods.items():
                current = tuple(changed.get(f"{path}.{name}", parameters).split())
                private.append(PrivateName(component, module, owner, name, current))
    for component, attributes in ATTRIBUTES.items():
        for path, names in attributes.items():
            module, _, owner = path.rpartition(".")
            private += [PrivateName(component, module, owner, name, None) for name in names.split()]
    return private
