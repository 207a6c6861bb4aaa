"""What Linux reports about this machine's processor; needs no torch."""

from functools import cache
from pathlib import Path


@cache
def cpu_has_fast_bf16() -> bool:
    """Whether bfloat16 is faster than float32 here: a CPU with AMX, or AMD from Zen 4 on.

    AVX512-BF16 alone is not enough: bf16 ran at twice the speed of fp32 on an AMD EPYC, but at half
    of it on an Intel Xeon without AMX (docs/decisions.md). False on systems other than Linux.
    """
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in text)
