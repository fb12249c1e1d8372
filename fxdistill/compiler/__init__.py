"""Models in, plan out; plan in, program out; a whole model made smaller."""
