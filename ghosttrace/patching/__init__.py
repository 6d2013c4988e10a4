"""Activation patching: which part of the retained cache carries what erased blocks left in it.

For every layer, retained token and {keys, values}: that part alone is sealed, or swapped from a counterfactual block
under the same memento text, and what follows is read under teacher forcing (`ghosttrace.patching.patcher`). A probe
says what a state holds; this says what the model uses. It is the activation patching of causal mediation analysis
(Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262) on a cache that has outlived its text. A swap
needs no cache that the model never met; a sealed state is one, so what sealing costs may be unfamiliarity.

Controls in every run: a patch from a reading that differs in nothing, the prompt, and under a swap what lies before
the block must change nothing; patching everything must equal the arm that does the same.
"""
