"""Trace markup, the law of expiry, visibility masks, and layouts of one forward pass. No model is needed here."""
