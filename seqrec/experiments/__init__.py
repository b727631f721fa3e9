"""Many runs: sweeps, grids, searches of step and batch sizes, and reports of them."""
