"""A run: executed, checked, trained, resumed, and what came out of it."""
