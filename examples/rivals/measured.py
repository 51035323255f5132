"""Run a module as ``python -m`` does and note the most memory that it held.

    python examples/rivals/measured.py PEAK MODULE ARGUMENTS

PEAK gets one number, megabytes.
"""

import os
import resource
import runpy
import sys


def peak_megabytes() -> float:
    """Returns the most memory that this process has held.

    Linux counts it from the start of this program; the portable figure may be that of the process that started it.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as lines:
            (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
        return int(kilobytes) / 1024
    except (OSError, ValueError):
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, kilobytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Runs the module; the number is written even if it fails."""
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if {"-h", "--help"} & set(sys.argv[1:2]) else 2)
    place, module = sys.argv[1:3]
    place = os.path.abspath(place)
    sys.argv[:3] = [module]
    sys.path[0] = os.getcwd()  # as ``python -m`` has it
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        with open(place, "w", encoding="utf-8") as text:
            text.write("{:.1f}\n".format(peak_megabytes()))


if __name__ == "__main__":
    main()
