"""`python -m bench.serving`: the same as `jaxsgl-bench`."""

from bench.serving.command import main

if __name__ == "__main__":
    raise SystemExit(main())
