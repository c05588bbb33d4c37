"""What stands under the trainer and is not in the paper: the step's gradients, checkpoints, monitoring, checks."""
