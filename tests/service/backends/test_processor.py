"""What Linux tells of processors."""

from pathlib import Path

import pytest

from service.backends.processor import multiplies_bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["fpu avx2 avx512f avx512_bf16"] * 2, True),
        (["fpu amx_bf16"], True),
        (["fpu avx2 avx512f avx512_vnni"] * 2, False),
        (["fpu avx512_bf16", "fpu avx2"], False),  # a thread may run on either
        ([], False),  # no x86 processor
    ],
)
def test_bfloat16_is_multiplied_where_every_processor_says_so(tmp_path: Path, flags: list[str], expected: bool) -> None:
    processors = [f"processor\t: {number}\nmodel name\t: x\nflags\t\t: {line}\n" for number, line in enumerate(flags)]
    (tmp_path / "cpuinfo").write_text("\n".join(processors))
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is expected


def test_where_there_is_nothing_to_read_it_is_not(tmp_path: Path) -> None:
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is False
