"""The models here are tiny: one thread each, so that parallel workers do not fight over the cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs the hub

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
