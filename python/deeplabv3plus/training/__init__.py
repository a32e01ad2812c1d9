"""Training: settings, loop, log (needs the extra `train`, all but `config`)."""
