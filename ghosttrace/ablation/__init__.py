"""Ablations: arms, sampling, paired effects with their controls, statistical power, plans."""
