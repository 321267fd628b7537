"""report.html: what an evaluation has found, and hearts that can be changed, in one file that needs nothing else."""
