"""Who sees whom: markup, the law of expiry, masks, and layouts of one forward pass. There is no model in here."""
