"""The lowest layer: config engine, errors, files, logs, devices, seeds, ranks, optional packages, progress bars."""
