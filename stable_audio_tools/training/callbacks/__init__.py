"""What happens around the training step: checkpoints, guards, demos."""
