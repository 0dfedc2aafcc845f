"""Load on a running server, and what came of it: `jaxsgl-bench` (docs/benchmarking.md).

`arguments` → `datasets` (what to ask) and `arrivals` (when) → `driver` sends it through `client` in
a `backends` dialect while `server_watch` reads the server's counters and `nvml` the devices →
`measuring` puts a run together → `report` works out its figures, `terminal` and `plots` show them.
`comparison` sets two results side by side, `sweep` looks at many.
"""
