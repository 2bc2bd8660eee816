"""Hands from a folder of rigged glTF files. (first: the listing)"""
from pathlib import Path
from trainer.data.synthetic.hands import HandSource
from trainer.data.synthetic.pose import PoseSolver
def mesh_files(folder: Path) -> tuple[Path, ...]:
    raise NotImplementedError
def load_hand_meshes(folder: Path, solver: PoseSolver) -> HandSource:
    raise NotImplementedError
