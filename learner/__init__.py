"""The learner: batches, the update, checkpoints, publishing, and the loop around them."""
