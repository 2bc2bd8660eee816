"""The hand detector's labelled pictures, data sets, targets, loss and measuring."""
