"""Privacy audits of erased reasoning: attacks, defences, controls, a verdict."""
