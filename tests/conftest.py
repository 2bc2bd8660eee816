"""What holds for every test. Fixtures live in the folder of the tests that use them."""

import os

from hypothesis import settings

# Before the first import of TensorFlow: only its errors, not its report on the machine's instruction sets.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The same examples on every run, and no time limit for each: a slow machine is no defect of the code.
settings.register_profile("handpose", deadline=None, derandomize=True)
settings.load_profile("handpose")
