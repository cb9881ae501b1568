"""Pins: a revision of a model that stays readable while the model goes on learning."""
