"""Run vLLM in a separate process: `python tests/helpers/vllm_subprocess.py FOLDER ARM (v2 | tensor | pipeline)`.

`v2` is the V2 model runner under Triton's interpreter; the others use two worker processes. Prints the largest
difference to the reference, the largest difference to full attention, and the number of preempted requests.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER, ARM, KIND = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if KIND == "v2":
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    import triton.backends

    # Triton requires a driver even for its interpreter, and has none for a CPU.
    cpu = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    triton.backends.backends["cpu"] = SimpleNamespace(driver=cpu, compiler=None)
else:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"

import numpy as np
from vllm import SamplingParams

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.law.expiry import Policy
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.sampling import Sampling
from ghosttrace.serving.settings import OVERRIDE_PREFIX
from ghosttrace.serving.vllm.engine import SharedNoiseSampler
from helpers.engines import (
    Script,
    generate_logprobs,
    make_model,
    masked_logprobs,
    max_difference,
    random_scripts,
    scheduler,
    serving,
    session_logprobs,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "v2": {"pages": 17},
    "tensor": {"tensor_parallel_size": 2, "pages": 8},  # each worker holds half of a page
    "pipeline": {"pipeline_parallel_size": 2, "enforce_eager": False, "pages": 8},
}


def draw(llm: Any, checkpoint: Checkpoint, scripts: Sequence[Script]) -> bool:
    """Return True if sampling with shared noise gives the same tokens in vLLM and in `gt.generate`."""
    sampling = Sampling(12, temperature=1.0)
    params = [
        SamplingParams(
            max_tokens=12,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={OVERRIDE_PREFIX + "draws": SharedNoiseSampler((0, number), sampling)},
        )
        for number in range(len(scripts))
    ]
    outputs = llm.generate([{"prompt_token_ids": list(script.prompt)} for script in scripts], params, use_tqdm=False)
    requests = [gt.Request(script.prompt, (0, number)) for number, script in enumerate(scripts)]
    checkpoint.model.generation_config.eos_token_id = None
    checkpoint.model.config.eos_token_id = None
    expected = gt.generate(checkpoint.model, requests, checkpoint.markup, checkpoint.policy, sampling)
    return [list(output.outputs[0].token_ids) for output in outputs] == [generation.tokens for generation in expected]


def main() -> None:
    """Run random scripts under one arm and print the report."""
    checkpoint = make_model(FOLDER)
    scripts = random_scripts(checkpoint, np.random.default_rng(0), 10 if KIND == "v2" else 24)
    with serving(checkpoint.name, arm=ARM, max_num_seqs=8, **OPTIONS[KIND]) as llm:
        planner, preempted = scheduler(llm), []
        before = planner._preempt_request
        planner._preempt_request = lambda *args, **kwargs: (preempted.append(args[0]), before(*args, **kwargs))[1]
        runners = llm.collective_rpc(lambda worker: [base.__module__ for base in type(worker.model_runner).__mro__])
        actual = generate_logprobs(llm, scripts)
        drawn = draw(llm, checkpoint, scripts[:4]) if KIND == "v2" and ARM == "memento" else True
    policy = checkpoint.policy
    expected = (
        masked_logprobs(checkpoint, scripts, policy)
        if ARM == "memento"
        else session_logprobs(checkpoint, scripts, ARMS[ARM]())
    )
    report = {
        "runners": runners,
        "worst": max_difference(actual, expected),
        "full": max_difference(actual, masked_logprobs(checkpoint, scripts, Policy(policy.mask_delimiters, -1))),
        "preempted": len(preempted),
        "drawn": drawn,
    }
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    main()
