"""Figures about what users, items and events carry beside their ids."""
