"""What every part stands on: optional packages, files, devices, seeds, ranks, logging."""
