"""Start-up, collectives and wrapping for one to many processes."""
