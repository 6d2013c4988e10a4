"""Activation patching of the retained cache: which part of it carries information from erased blocks.

For every block, each combination of layer, retained token and {keys, values} is patched alone: its states are replaced
by sealed states, or by states computed from a counterfactual block under the same memento text. The following text is
then scored under teacher forcing (`ghosttrace.patching.patcher`). Under another law than Memento's, the states of the
tokens that are retained at an erasure are patched in the same way. A probe shows what information a state contains;
patching shows what information the model uses. The method is activation patching from causal mediation analysis (Vig et
al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262), applied to a cache whose text has been erased.

"Sufficient" and "necessary" are two claims. A site is sufficient if patching it alone has the effect of patching
everything, and necessary if patching everything except it has not. The search for a set of sites measures both
(`ghosttrace.patching.site_search`).

A swapped cache is of a kind that the model was trained on. A sealed state may not be, so that the effect of sealing may
include its unfamiliarity to the model.

Every run has controls. The following patches must change nothing: states from a pass that differs in nothing, the
prompt, and, for a swap, everything before the text that is swapped. Patching everything must equal the arm that alters
the whole cache in the same way.
"""
