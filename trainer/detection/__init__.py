"""Training and measuring the hand detector: labelled pictures, targets, losses, the loop."""
