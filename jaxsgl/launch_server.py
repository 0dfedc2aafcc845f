"""`python -m jaxsgl.launch_server`: `jaxsgl.serve` by the name that SGLang's users know."""

from __future__ import annotations

import sys

from jaxsgl.serve import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m jaxsgl.launch_server"))
