"""Trains, measures and exports the hand-pose networks; `python -m trainer --help` lists the commands."""
