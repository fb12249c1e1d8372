"""A model made smaller by itself: widths for a budget, in steps, taught by what it was made of."""
