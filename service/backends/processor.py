"""What this machine's processors can do."""

from pathlib import Path
from typing import Final

_INSTRUCTIONS: Final = {"avx512_bf16", "amx_bf16"}  # as Linux names them


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether every processor has instructions that multiply bfloat16: many x86 servers from 2020 on.

    Args:
        cpuinfo: what Linux tells of the processors. Where there is no such file, the answer is no.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = [set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return bool(flags) and all(each & _INSTRUCTIONS for each in flags)
