"""Privacy audits of erased reasoning: attacks, defences, controls and a verdict."""
