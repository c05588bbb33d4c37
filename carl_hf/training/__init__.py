"""What the trainer stands on: the passes of a step, gradients, several processes, checkpoints, monitoring, checks."""
