"""Torch-Pruning's measures of importance, one file each, over our couplings: ``tp.lamp`` and its kin.

Fang et al. 2023, https://arxiv.org/abs/2301.12900. Its importances read a group of layers that are pruned together.
Here no group comes from its own dependency graph: :mod:`fxdistill.criteria.tp._groups` makes them from the coupled
classes, and the scores go back to these.
"""
