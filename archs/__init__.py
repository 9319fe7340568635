"""Model files, `archs/<dataset>/<file>.py`, and the parts that they share."""
