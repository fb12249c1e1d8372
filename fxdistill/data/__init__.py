"""Data: from a spec to batches on a device."""
