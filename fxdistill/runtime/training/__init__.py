"""One training: the loop over batches, and what makes its steps quick and small."""
