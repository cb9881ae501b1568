"""`livefactor top`: the models and calls of a running server, from its metrics port."""
