"""What /proc/cpuinfo says of processors that are not this one."""

import platform

import pytest

from misotune.processor import bf16_instructions, processor_name

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) @ 2.80GHz\nflags\t\t: fpu avx512f{}\nvmx flags\t: avx512_bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (INTEL.format(""), "Intel(R) Xeon(R) @ 2.80GHz", ""),
        (INTEL.format(" avx512_bf16 amx_bf16"), "Intel(R) Xeon(R) @ 2.80GHz", "amx_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", platform.machine(), "bf16"),
        ("processor\t: 0\nhart\t: 0\n", platform.machine(), None),  # RISC-V: it does not tell
    ],
)
def test_bfloat16_is_emulated_without_an_instruction_for_it(text, name, instructions, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    assert processor_name(info) == name
    assert bf16_instructions(info) == instructions


def test_a_system_without_cpuinfo_does_not_tell(tmp_path):
    assert bf16_instructions(tmp_path / "none") is None
    assert processor_name(tmp_path / "none") == platform.machine()
