"""Both commands of this package under the names by which the trainer's command line takes them in."""

from trainer.data.synthetic.preview import add_arguments as add_preview_arguments
from trainer.data.synthetic.preview import run as run_preview
from trainer.data.synthetic.synth import add_arguments as add_synth_arguments
from trainer.data.synthetic.synth import run as run_synth

__all__ = ["add_preview_arguments", "add_synth_arguments", "run_preview", "run_synth"]
