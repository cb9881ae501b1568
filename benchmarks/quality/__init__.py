"""Ranking and rating quality of livefactor, contrasted with full retrains.

It decides between learning rules.
"""
