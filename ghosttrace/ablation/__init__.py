"""Ablations: arms, sampling, paired effects with controls, power analysis and cost plans."""
