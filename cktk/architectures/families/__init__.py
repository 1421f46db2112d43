"""Student families, a file each."""
