"""The training engine: updates, validation, checkpoints, the loop. It knows no task and no architecture."""
