"""A run: executed, checked, resumed, and what came out of it."""
