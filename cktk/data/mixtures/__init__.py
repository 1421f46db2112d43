"""Several corpora or streams as one."""
