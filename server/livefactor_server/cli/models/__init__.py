"""`livefactor models`: models, their challengers, and what the judge says about them."""
