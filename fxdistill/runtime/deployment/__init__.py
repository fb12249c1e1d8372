"""A model by itself: evaluated, exported, in less precision, timed, compared."""
