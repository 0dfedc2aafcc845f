"""Device kernels and their float32 references. They know nothing of the engine that calls them.

Each operation is a folder: `api.py` (its public function, which validates and picks a backend),
`reference.py` (the formula, slow), one file per backend, `cases.py` (named inputs that tests,
benchmarks and tuning share).
"""
